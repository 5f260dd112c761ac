"""Samples per second of a bare PyTorch loop, of ours alone, and of ours under Ray Train.

    .venv/bin/python tests/bench/bench_train.py [--quick]

Writes train.json beside itself. All contestants live at once and take turns of three steps on
the same machine, at the same priority, so whatever else runs slows all of them. A contestant's
rate is the median of its turns but the first; `to_bare` is the worst ratio of Ray's over bare's.

bare: forward, backward, clip, torch's fused AdamW, on batches that the same thread prepares
ahead; two processes under DistributedDataParallel. trainer: transformers' Trainer on the same
model, batches and optimiser, one process. ours: `vlm4vla.train` in one process.
ray-zeroN: `vla_platform.training.fit`. The last three save a checkpoint every
`CHECKPOINT_EVERY` steps. Start-up: from the call of `fit` to the end of its first step; the
first scene's first one finds Ray just started, the others a warm session. `next_startup_s`: in a
group of workers that trains several runs, from the end of one to the end of the next's first step.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import train_turns
from measured import write
from train_turns import STEPS, Dropped, FirstStep, Over, TakingTurns, Turns

from envs import tabletop
from envs.benchmarks import benchmark
from envs.experts.tabletop import demonstrate
from vlm4vla.batches import Batches
from vlm4vla.data.dataset import Dataset, build_manifest, encode_shard
from vlm4vla.data.normalise import Normaliser
from vlm4vla.engine import Engine, Loss
from vlm4vla.policies import VlmPolicy, build_policy
from vlm4vla.policy_job import TrainJob
from vlm4vla.run import Run
from vlm4vla.train import learning_rate, train

OUT = Path(__file__).parent / "train.json"
BACKBONE = "tiny-qwen3vl-2b"
BATCHES = (256, 384, 512)
"""Global batches of the three sizes; the smallest takes over 0.3 s with two workers."""
CHECKPOINT_EVERY = 25
ENDLESS = 100_000
SHORT, RUNS = 3, 4
"""Steps and number of a sweep's runs, when their start-ups are measured."""
ROW = benchmark("tabletop")
ROW = replace(ROW, recipe=replace(ROW.recipe, checkpoints=()))


def run_of(batch: int, steps: int = ENDLESS) -> Run:
    fields = {"init": "scratch", "steps": steps, "batch": batch}
    return Run(BACKBONE, "tabletop", **fields).resolved(ROW.recipe)


def parts(dataset: Path, batch: int, turns: Turns) -> tuple[TrainJob, VlmPolicy, Batches]:
    """The policy of a size, and its batches."""
    run = run_of(batch)
    policy = build_policy(run, ROW.chunk, overrides=ROW.recipe.overrides)
    data = Dataset(dataset, policy.input_px(run.image_px), policy.resize)
    normaliser = Normaliser(ROW.recipe.normalisation, data.manifest.statistics)
    share = dist.get_rank(), dist.get_world_size()
    batches = Batches(run, ROW, data, policy, normaliser, *share, 1)
    return TrainJob(run, ROW, dataset, turns.folder), policy, batches


def hugging_face(dataset: Path, batch: int, turns: Turns) -> None:
    """transformers' Trainer with the same model, batches and optimiser."""
    from train_peer import TakingTurns, trainer

    job, policy, batches = parts(dataset, batch, turns)
    callback = TakingTurns(turns, batch)
    trainer(policy, batches.steps(0, ENDLESS), partial(learning_rate, job), callback)


def bare(dataset: Path, batch: int, turns: Turns) -> None:
    """The loop that a tutorial would write."""
    rank, workers = dist.get_rank(), dist.get_world_size()
    job, policy, batches = parts(dataset, batch, turns)
    module: torch.nn.Module = Loss(policy)
    if workers > 1:
        module = torch.nn.parallel.DistributedDataParallel(module)
    parameters = policy.optimised_parameters()
    optimiser = torch.optim.AdamW(parameters, lr=job.recipe.lr, weight_decay=0.0, fused=True)
    for step, (part,) in batches.steps(0, ENDLESS):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(job, step)
        loss, _ = module(part.inputs, *part.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if (step + 1) % STEPS == 0 and rank == 0:
            turns.begin() if step < STEPS else turns.end(STEPS * batch)
        if step + 1 == STEPS * (turns.rounds + 2):
            return


def ours(contests: dict[int, Turns], zero: int, dataset: Path, sink: Any) -> None:
    """Our loop, in every worker of a contestant."""
    engine = Engine(zero=zero, optimiser="fused", checkpoint_every=CHECKPOINT_EVERY)
    for batch, turns in contests.items():
        with tempfile.TemporaryDirectory() as scratch:
            job = TrainJob(run_of(batch), ROW, dataset, Path(scratch), engine, log_every=1)
            with contextlib.suppress(Over):
                train(job, TakingTurns(sink, turns, batch))
        dist.barrier()


def short(folder: Path, dataset: Path, sink: Any) -> None:
    """A sweep's run of a few steps."""
    first = FirstStep(sink)
    with tempfile.TemporaryDirectory() as scratch:
        job = TrainJob(run_of(BATCHES[0], SHORT), ROW, dataset, Path(scratch), Engine())
        train(job, first)
    if dist.get_rank() == 0:
        told = {"first": first.at, "ended": time.time()}
        (folder / f"{first.at}.json").write_text(json.dumps(told))


def contestant(role: str, rank: int, workers: int, folder: Path, order: str, rounds: int) -> None:
    """A process of a contestant that needs no Ray."""
    torch.set_num_threads(1)
    if role != "trainer":  # accelerate would take one process with a rank for several
        os.environ["LOCAL_RANK"] = str(rank)
    store = dist.FileStore(str(folder / f"meeting-{role}"), workers)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=workers)
    contests = contests_of(folder, role, tuple(order.split(",")), rounds)
    dataset = folder.parent / "dataset"
    if role == "ours":
        return ours(contests, 0, dataset, Dropped())
    loop = {"bare": bare, "trainer": hugging_face}[role]
    for batch, turns in contests.items():
        loop(dataset, batch, turns)
        dist.barrier()


def contests_of(folder: Path, name: str, order: tuple[str, ...], rounds: int) -> dict[int, Turns]:
    return {batch: Turns(folder / str(batch), name, order, rounds) for batch in BATCHES}


def make_dataset(folder: Path) -> None:
    folder.mkdir(parents=True)
    demos = [demonstrate("reach", tabletop.DEMONSTRATIONS_FROM + i, 0) for i in range(40)]
    data = encode_shard(demos, 0)
    (folder / "shard-00000.parquet").write_bytes(data)
    manifest = build_manifest("tabletop", "bench", [("shard-00000.parquet", data)])
    (folder / "manifest.json").write_bytes(manifest.to_bytes())


def scene(folder: Path, workers: int, rounds: int) -> dict[str, Any]:
    """All contestants with so many workers: samples per second by size, and start-ups."""
    alone = ("bare", "trainer", "ours") if workers == 1 else ("bare",)
    order = (*alone, "ray-zero0", "ray-zero2")
    for batch in BATCHES:
        (folder / str(batch)).mkdir(parents=True)
    rest = [str(workers), str(folder), ",".join(order), str(rounds)]
    started = [
        subprocess.Popen([sys.executable, __file__, "--contestant", role, str(rank), *rest])
        for role in alone
        for rank in range(workers)
    ]
    try:
        return _contest(folder, workers, rounds, order, started)
    finally:
        for process in started:
            process.kill()


def _contest(
    folder: Path, workers: int, rounds: int, order: tuple[str, ...], started: list[Any]
) -> dict[str, Any]:
    for role in (name for name in order if not name.startswith("ray")):
        _await_began(folder, role, *started)
    submitted, fits, pool = {}, [], ThreadPoolExecutor(2)
    for zero in (0, 2):
        name = f"ray-zero{zero}"
        submitted[name] = time.time()
        contests = contests_of(folder, name, order, rounds)
        work = partial(ours, contests, zero)
        fits.append(pool.submit(_fit, folder.parent, work, [f"{name}-{workers}"], ENDLESS, workers))
        _await_began(folder, name, fits[-1])
    for fit in fits:
        fit.result()
    assert [process.wait() for process in started] == [0] * len(started)
    told = {
        n: {b: json.loads((folder / str(b) / f"{n}.json").read_text()) for b in BATCHES}
        for n in order
    }
    return {
        "samples_per_s": {
            n: {b: round(statistics.median(t["rates"]), 1) for b, t in by.items()}
            for n, by in told.items()
        },
        "turns": {
            n: {b: [round(rate) for rate in t["rates"]] for b, t in by.items()}
            for n, by in told.items()
        },
        "startup_s": {n: round(told[n][BATCHES[0]]["first"] - submitted[n], 2) for n in submitted},
    }


def next_startups(folder: Path, workers: int) -> list[float]:
    """Seconds from the end of a run to the first step of the next in the same workers."""
    folder.mkdir(parents=True)
    names = [f"short-{workers}-{number}" for number in range(RUNS)]
    _fit(folder.parent, partial(short, folder), names, SHORT, workers)
    told = [json.loads(path.read_text()) for path in sorted(folder.iterdir())]
    return [round(b["first"] - a["ended"], 2) for a, b in itertools.pairwise(told)]


def _fit(folder: Path, work: Any, names: Sequence[str], steps: int, workers: int) -> None:
    """folder: of the data and the store."""
    import ray
    from vla_platform import training
    from vla_platform.cluster import CLUSTERS
    from vla_platform.store import open_store

    cluster = replace(CLUSTERS["laptop"], workers=(workers, workers), cpus_per_worker=0.25)
    ray.cloudpickle.register_pickle_by_value(train_turns)  # workers do not find this folder
    dataset_of = lambda dataset, scratch: dataset.everything()  # noqa: E731
    tasks = [training.Task(name, name, steps, "bench", dataset_of) for name in names]
    training.fit(work, tasks, open_store(str(folder / "store")), cluster)


def _await_began(folder: Path, name: str, *work: Any) -> None:
    """Start-ups come one after the other; RuntimeError when the work behind one failed."""
    while not (folder / str(BATCHES[0]) / f"began-{name}").exists():
        for each in work:
            if each.poll() if isinstance(each, subprocess.Popen) else each.done():
                raise RuntimeError(f"a contestant ended before {name} began: see its error above")
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="2 rounds instead of 10")
    parser.add_argument("--contestant", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant:
        role, rank, workers, folder, order, rounds = args.contestant
        return contestant(role, int(rank), int(workers), Path(folder), order, int(rounds))
    import ray
    from vla_platform import session

    rounds = 2 if args.quick else 10
    with tempfile.TemporaryDirectory(prefix="vla-bench-") as name:
        folder = Path(name)
        # Ray's workers would give way to the other contestants.
        os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
        os.environ["VLA_HOME"] = str(folder / "home")
        make_dataset(folder / "dataset")
        stored = folder / "store" / "datasets" / "bench"
        stored.parent.mkdir(parents=True)
        stored.symlink_to(folder / "dataset")
        session.connect()
        try:
            scenes = {str(w): scene(folder / str(w), w, rounds) for w in (1, 2)}
            later = {str(w): next_startups(folder / f"short-{w}", w) for w in (1, 2)}
        finally:
            ray.shutdown()  # what waits for a turn that never comes ends, too
    rows = {w: told["samples_per_s"] for w, told in scenes.items()}
    ratios = {
        f"{w} workers, {n}, {b}": round(rate / rows[w]["bare"][b], 3)
        for w in rows
        for n, by in rows[w].items()
        for b, rate in by.items()
        if n != "bare"
    }
    two = {b: round(rows["2"]["ray-zero0"][b] / rows["1"]["ray-zero0"][b], 2) for b in BATCHES}
    made = {
        "to_bare": min(ratio for name, ratio in ratios.items() if "ray" in name),
        "to_trainer": min(rows["1"]["ray-zero0"][b] / rows["1"]["trainer"][b] for b in BATCHES),
        "ratios": ratios,
        "two_workers_to_one": two,
        "backbone": BACKBONE,
        "rounds": rounds,
        "workers": scenes,
        "next_startup_s": later,
    }
    write(OUT, made)
    print(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
