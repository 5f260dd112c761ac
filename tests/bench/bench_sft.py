"""Samples per second of a stage's fine-tuning beside TRL's SFTTrainer, in one run.

    make bench-sft

Writes sft.json beside itself. Both train the same tiny backbone on the same questions with
batches of the same size in fp32 on one thread, and take turns of a few steps on the same machine,
so whatever else runs there slows both. `to_trl` is our rate over theirs; both rates are medians of
all turns but the first. Each is as it comes: ours keeps decoded pictures
and prepares a batch while another is computed, TRL's default prepares each sample anew.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measured import write
from train_turns import Dropped, Over, TakingTurns, Turns

from envs.home import home
from vlm4vla.aux import questions
from vlm4vla.aux.readers import read
from vlm4vla.aux.stage_job import StageJob
from vlm4vla.engine import Engine
from vlm4vla.stages import TINY_STAGES
from vlm4vla.train import train

HERE = Path(__file__).parent
OUT = HERE / "sft.json"
ORDER = ("ours", "trl")
SAMPLES = 512
BATCHES = (16, 64)
STAGE = replace(TINY_STAGES["bridgevqa"], steps=100_000)


def ours(folder: Path, rounds: int, batch: int) -> None:
    """The stage's own loop, in the calling process."""
    torch.set_num_threads(1)
    job = StageJob(
        replace(STAGE, batch=batch),
        folder / "questions",
        folder / "scratch",
        Engine(optimiser="fused"),
        log_every=1,  # turns count reports
    )
    try:
        train(job, TakingTurns(Dropped(), Turns(folder, "ours", ORDER, rounds), batch))
    except Over:
        return


def prepare(folder: Path) -> None:
    folder.mkdir(parents=True)
    rows = [replace(row, samples=SAMPLES) for row in STAGE.rows]
    sources = {row.name: (row.samples, read(row, folder)) for row in rows}
    questions.prepare("bench", sources, lambda name, data: (folder / name).write_bytes(data))


def contest(folder: Path, data: Path, rounds: int, batch: int, peer: Path) -> dict[str, float]:
    """Both with one batch size; samples per second."""
    folder.mkdir()
    (folder / "questions").symlink_to(data)
    rest = [str(folder), str(rounds), str(batch)]
    paths = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    started = [
        subprocess.Popen([sys.executable, __file__, "--ours", *rest], env=environment),
        subprocess.Popen([str(peer), str(HERE / "sft_peer.py"), *rest], env=environment),
    ]
    try:
        # The one that is left would wait for its turn for ever.
        while any(process.poll() is None for process in started):
            if any(process.poll() for process in started):
                raise RuntimeError("a contestant ended with an error, which it printed above")
            time.sleep(0.2)
    finally:
        for process in started:
            process.kill()
    turns = {n: json.loads((folder / f"{n}.json").read_text())["rates"] for n in ORDER}
    return {name: statistics.median(rates) for name, rates in turns.items()}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--ours", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ours:
        ours(Path(args.ours[0]), int(args.ours[1]), int(args.ours[2]))
        return 0
    peer = home() / "peers" / "trl" / "bin" / "python"
    if not peer.exists():
        print(f"the peer is not there ({peer}): run tests/bench/peer_trl.sh first")
        return 1
    rounds = 3 if args.quick else 20
    with tempfile.TemporaryDirectory(prefix="vla-bench-") as name:
        folder = Path(name)
        prepare(folder / "data")
        rates: dict[int, dict[str, Any]] = {
            batch: contest(folder / str(batch), folder / "data", rounds, batch, peer)
            for batch in BATCHES
        }
    made = {
        "to_trl": {batch: round(found["ours"] / found["trl"], 2) for batch, found in rates.items()},
        "samples_per_s": {b: {n: round(r, 1) for n, r in f.items()} for b, f in rates.items()},
        **{"backbone": STAGE.backbone, "rounds": rounds},
    }
    write(OUT, made)
    print(json.dumps(made, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
