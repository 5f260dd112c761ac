"""Samples per second of prepared data beside data as published and lerobot's loader, in one run.

    tests/bench/peer_lerobot.sh
    make bench-data [QUICK=1] [FRAMES=FOLDER]

Writes data.json beside itself. The same frames (224 px, chunks of 10 actions, batches of 64,
random shifts) lie in every layout: prepared as JPEG and PNG, CALVIN's npz, LIBERO's HDF5, and
LeRobot as lerobot records it (AV1), as we export it (H.264) and as images. The readers take
turns, two decoding threads or processes each, so whatever else runs here slows all of them; a
rate is the median of its turns. `to_lerobot` and `to_npz` are prepared JPEG, decoded anew for
every sample, over lerobot's own videos and over npz; the other ratios stand beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from measured import write
from vla_platform.prepare import make_shard
from vla_platform.store import open_store

from envs.api import Demonstration
from envs.home import home
from envs.resize import resize
from vlm4vla.data.lerobot_write import write_lerobot
from vlm4vla.data.prepare import Preparation, open_source
from vlm4vla.data.prepared import Prepared
from vlm4vla.data.source import demonstration

HERE = Path(__file__).parent
OUT = HERE / "data.json"
PX, BATCH, STEPS = 224, 64, 100
PEER = home() / "peers/lerobot/bin/python"
OURS = {"prepared_jpeg": "encoded", "prepared_png": "encoded", "prepared_decoded": "decoded"}
PUBLISHED = {"npz": "npz", "hdf5": "hdf5"}
LEROBOT = ("lerobot_video", "lerobot_video_h264", "lerobot_images")


def scenes(frames: int) -> Iterator[Demonstration]:
    """Episodes of drawn scenes whose PNG and JPEG are as large as LIBERO's, 75 and 23 kB."""
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 2.2, (PX, PX, 3))
    for _ in range(0, frames, STEPS):
        coarse = rng.integers(60, 200, (12, 12, 3), dtype=np.uint8)
        base = resize(coarse, PX) + grain
        images = np.repeat(np.clip(base, 0, 255).astype(np.uint8)[None], STEPS, 0)
        for step, image in enumerate(images):
            image[step : step + 40, 60:110] = (200, 40, 50)
        yield demonstration("pick it up", images, rng.uniform(-1, 1, (STEPS, 7)))


def write_hdf5(path: Path, demos: list[Demonstration]) -> None:
    """LIBERO's layout, uncompressed and upside down as it publishes them."""
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": "pick it up"})
        for number, demo in enumerate(demos):
            data[f"demo_{number}/obs/agentview_rgb"] = demo.images[:, ::-1, ::-1]
            data[f"demo_{number}/actions"] = demo.actions.astype(np.float64)


def write_npz(folder: Path, demos: list[Demonstration]) -> None:
    """CALVIN's layout, compressed as its renderer writes it, with its other small arrays."""
    folder.mkdir()
    rows = ((image, move) for demo in demos for image, move in zip(demo.images, demo.actions))  # noqa: B905
    for step, (image, move) in enumerate(rows):
        np.savez_compressed(
            folder / f"episode_{step:07d}.npz",
            actions=move.astype(np.float64),
            rel_actions=move.astype(np.float64),
            robot_obs=np.zeros(15),
            scene_obs=np.zeros(24),
            rgb_static=image,
        )
    (folder / "lengths.json").write_text(json.dumps([demo.steps for demo in demos]))


def write_prepared(folder: Path, source: Path, image: str, px: int = PX) -> float:
    """Prepare as the job's tasks do, into a store of its own; returns the seconds of CPU."""
    work = Preparation(open_source("libero", [source]), folder.name, "bench", px=px, image=image)
    store, began = open_store(str(folder / "store")), time.process_time()
    for number in range(work.shards):
        make_shard(store, work.id, work, number)
    names = [f"preparing/{work.id}/shard-{n:05d}.note" for n in range(work.shards)]
    manifest = work.manifest([store.get(name) for name in names])
    store.put(f"datasets/{work.id}/manifest.json", manifest.to_bytes())
    spent = time.process_time() - began
    for path in (folder / "store/datasets" / work.id).iterdir():
        path.rename(folder / path.name)
    return spent


def write_lerobots(folder: Path, demos: list[Demonstration]) -> None:
    write_lerobot(folder / "lerobot_video_h264", demos, 20, "panda")
    write_lerobot(folder / "lerobot_images", demos, 20, "panda", video=False)
    np.savez(
        folder / "rows.npz",
        frames=np.concatenate([demo.images for demo in demos]),
        actions=np.concatenate([demo.actions for demo in demos]),
        episodes=np.repeat(np.arange(len(demos)), [demo.steps for demo in demos]),
    )
    peer("write", folder / "rows.npz", folder / "lerobot_video").communicate()


def write_all(folder: Path, demos: list[Demonstration]) -> None:
    write_hdf5(folder / "hdf5/bench_demo.hdf5", demos)
    write_npz(folder / "npz", demos)
    write_prepared(folder / "prepared_jpeg", folder / "hdf5", "jpeg")
    write_prepared(folder / "prepared_png", folder / "hdf5", "png")
    shutil.copytree(folder / "prepared_png", folder / "prepared_decoded")
    write_lerobots(folder, demos)


def child(command: list[Any], path: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "SVT_LOG": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([*map(str, command)], env=environment, **pipes)


def peer(*arguments: Any) -> subprocess.Popen[str]:
    return child([PEER, HERE / "data_peer.py", *arguments], str(HERE))


def reader(name: str, folder: Path) -> subprocess.Popen[str]:
    root = HERE.parents[1]
    path = os.pathsep.join(map(str, (root, root / "platform", HERE)))
    return child([sys.executable, HERE / "data_readers.py", name, folder, BATCH], path)


def turns(folder: Path, rounds: int, seconds: float) -> dict[str, float]:
    """Samples per second of each reader: the median of its turns, after one that warms up."""
    running = {name: reader(kind, folder / name) for name, kind in {**OURS, **PUBLISHED}.items()}
    running |= {name: peer("read", folder / name, BATCH, 10) for name in LEROBOT}
    rates: dict[str, list[float]] = {name: [] for name in running}
    try:
        for _ in range(rounds + 1):
            for name, process in running.items():
                rates[name].append(_turn(name, process, seconds))
    finally:
        for process in running.values():
            process.kill()
    return {name: round(statistics.median(found[1:]), 1) for name, found in rates.items()}


def _turn(name: str, process: subprocess.Popen[str], seconds: float) -> float:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{seconds}\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"{name} ended with an error, which it printed above")
    return float(answer)


def preparing(folder: Path, sizes: Mapping[int, int]) -> dict[str, float]:
    """Frames per second of one core, LIBERO's 128 px to 224 px JPEG; sizes: frames -> repeats."""
    base = [np.stack([resize(i, 128) for i in demo.images]) for demo in scenes(1000)]
    rng, rates = np.random.default_rng(0), {}
    for frames, repeats in sizes.items():
        path = folder / f"published-{frames}" / "bench_demo.hdf5"
        path.parent.mkdir()
        with h5py.File(path, "w") as file:
            file.create_group("data").attrs["problem_info"] = '{"language_instruction": "pick"}'
            for number in range(frames // STEPS):
                demo = file.create_group(f"data/demo_{number}")
                if number < len(base):
                    demo["obs/agentview_rgb"] = base[number]
                else:  # the same frames again, so that 100,000 fit on any disk
                    demo["obs"] = file[f"data/demo_{number % len(base)}/obs"]
                demo["actions"] = rng.uniform(-1, 1, (STEPS, 7))
        spent = []
        for _ in range(repeats):
            spent.append(write_prepared(folder / "made", path.parent, "jpeg"))
            shutil.rmtree(folder / "made")
        rates[str(frames)] = round(frames / statistics.median(spent), 1)
    return rates


def memory(folder: Path) -> list[float]:
    told, _ = reader("memory", folder / "prepared_jpeg").communicate()
    return list(json.loads(told))


def ratios(rates: Mapping[str, float]) -> dict[str, Any]:
    ours = {name: rates[name] for name in OURS}
    others = {name: rate for name, rate in rates.items() if name not in OURS}
    beside = {
        name: {other: round(rate / theirs, 2) for other, theirs in others.items()}
        for name, rate in ours.items()
    }
    main = beside["prepared_jpeg"]
    return {"to_lerobot": main["lerobot_video"], "to_npz": main["npz"], "ratios": beside}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--frames", type=Path, help="prepared demonstrations; drawn if absent")
    args = parser.parse_args()
    if not PEER.exists():
        print(f"the peer is not there ({PEER}): run tests/bench/peer_lerobot.sh first")
        return 1
    count = 600 if args.quick else 3_000
    with tempfile.TemporaryDirectory(prefix="vla-bench-") as name:
        folder = Path(name)
        write_all(folder, demonstrations(args.frames, count))
        rates = turns(folder, 5, 1.5 if args.quick else 3.0)
        sizes = {1_000: 3, 10_000: 1} if args.quick else {1_000: 5, 10_000: 3, 100_000: 1}
        made = {
            **ratios(rates),
            "samples_per_s": rates,
            "prepared_frames_per_cpu_s": preparing(folder, sizes),
            "epoch_own_mb": memory(folder),
            "frames": args.frames.name if args.frames else f"drawn, {count}",
        }
    write(OUT, made)
    print(json.dumps(made, indent=1))
    return 0


def demonstrations(folder: Path | None, count: int) -> list[Demonstration]:
    """Whole episodes, `count` frames or a little more."""
    demos: list[Demonstration] = []
    for demo in scenes(count) if folder is None else Prepared(folder):
        demos.append(demo)
        if sum(demo.steps for demo in demos) >= count:
            break
    return demos


if __name__ == "__main__":
    raise SystemExit(main())
