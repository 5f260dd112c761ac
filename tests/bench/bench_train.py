"""Samples per second of a bare PyTorch loop, of ours alone, and of ours under Ray Train.

    PYTHONPATH=.:platform .venv/bin/python tests/bench/bench_train.py [--quick]

Writes train.json beside itself. All contestants live at once and take turns of about a second
on the same machine, so whatever else runs there slows all of them. Each contestant's rate is
all its samples over all its turns but the first; `to_bare` is the worst ratio over the sizes.

bare: forward, backward, clip, torch's AdamW on batches prepared ahead by the same thread; two
processes under DistributedDataParallel. ours: `vlm4vla.train` in one process. ray-zeroN:
`vla_platform.training.fit`. Ours and ray's save a checkpoint every `CHECKPOINT_EVERY` steps.
Start-up is from the call of `fit` to the end of the first step, in a session already warm.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)
if str(ROOT / "platform") not in sys.path:
    sys.path.append(str(ROOT / "platform"))

import torch
import torch.distributed as dist

from envs import tabletop
from envs.benchmarks import benchmark
from envs.experts.tabletop import demonstrate
from vlm4vla.batches import Batches
from vlm4vla.data.dataset import Dataset, build_manifest, encode_shard
from vlm4vla.data.normalise import Normaliser
from vlm4vla.engine import Engine
from vlm4vla.policies import build_policy
from vlm4vla.run import Run
from vlm4vla.train import TrainJob, learning_rate, train

OUT = Path(__file__).parent / "train.json"
BACKBONE = "tiny-qwen3vl-2b"
BATCHES = (256, 384, 512)
"""Global batches of the three sizes."""
CHECKPOINT_EVERY = 25
ROW = benchmark("tabletop")
ROW = replace(ROW, recipe=replace(ROW.recipe, checkpoints=()))
ENDLESS = 100_000


@dataclass
class Turns:
    """Contestants take turns; the file says whose it is. Rank 0 of each keeps the times."""

    folder: Path
    name: str
    order: tuple[str, ...]
    rounds: int

    def __post_init__(self) -> None:
        self.samples, self.seconds, self.done = 0, 0.0, -1
        self.began = 0.0
        self.first = self.started = 0.0

    def begin(self) -> None:
        """Wait for the first turn."""
        self.first = time.time()
        self._await(0)

    def end(self, samples: int) -> bool:
        """A turn of so many samples is over. False when it was the last one."""
        took = time.monotonic() - self.began
        self.done += 1
        if self.done > 0:
            self.samples, self.seconds = self.samples + samples, self.seconds + took
        self._pass_on()
        if self.done == self.rounds:
            return False
        self._await(self.done + 1)
        return True

    def _turn(self) -> int:
        return self.order.index(self.name)

    def _await(self, count: int) -> None:
        wanted = count * len(self.order) + self._turn()
        while not (self.folder / f"turn-{wanted}").exists():
            time.sleep(0.005)
        self.began = time.monotonic()

    def _pass_on(self) -> None:
        following = self.done * len(self.order) + self._turn() + 1
        (self.folder / f"turn-{following}").touch()

    def save(self) -> None:
        told = {"rate": self.samples / self.seconds, "first": self.first}
        (self.folder / f"{self.name}.json").write_text(json.dumps(told))


class Over(Exception):
    """Every turn of a size has been taken."""


class TakingTurns:
    """A sink that hands on the turn at every report, around a real one."""

    def __init__(self, sink: object, turns: Turns, batch: int) -> None:
        self.sink, self.turns, self.batch, self.steps = sink, turns, batch, 0
        self.turn = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.sink, name)

    def candidates(self) -> list[int]:
        return []

    def report(self, rows: list[dict[str, float]]) -> None:
        self.sink.report(rows)
        self.steps += len(rows)

    def notice(self) -> bool:
        """Called by every worker; those but the first wait in the reduction that follows."""
        if dist.get_rank() == 0:
            self._hand_on()
        over = [self.turn > self.turns.rounds + 1]
        if dist.get_world_size() > 1:
            dist.broadcast_object_list(over)
        if over[0]:
            raise Over
        return False

    def _hand_on(self) -> None:
        self.turn += 1
        if self.turn == 1:
            self.turns.begin()
        elif not self.turns.end(self.steps * self.batch):
            self.turns.save()
            self.turn = self.turns.rounds + 2
        self.steps = 0


class NoStore:
    """Our loop alone: checkpoints are written and dropped."""

    def publish(self, part: object) -> None: ...
    def commit(self, part: object) -> None: ...
    def report(self, rows: object) -> None: ...


def sizes(folder: Path, name: str, order: tuple[str, ...], rounds: int) -> list[tuple[int, Turns]]:
    return [(b, Turns(folder / str(b), name, order, rounds)) for b in BATCHES]


def run_of(batch: int) -> Run:
    return Run(BACKBONE, "tabletop", init="scratch", steps=ENDLESS, batch=batch).resolved(ROW.recipe)


def bare(dataset: Path, entries: list[tuple[int, Turns]]) -> None:
    """The loop that a tutorial would write."""
    rank, workers = dist.get_rank(), dist.get_world_size()
    for batch, turns in entries:
        run = run_of(batch)
        job = TrainJob(run, ROW, dataset, turns.folder)
        policy = build_policy(run, ROW.chunk, overrides=ROW.recipe.overrides)
        data = Dataset(dataset, policy.input_px(run.image_px), policy.resize)
        normaliser = Normaliser(ROW.recipe.normalisation, data.manifest.statistics)
        batches = Batches(run, ROW, data, policy, normaliser, rank, workers, 1)
        module: torch.nn.Module = _Loss(policy)
        if workers > 1:
            module = torch.nn.parallel.DistributedDataParallel(module, find_unused_parameters=False)
        parameters = policy.optimised_parameters()
        optimiser = torch.optim.AdamW(parameters, lr=run.lr, weight_decay=0.0)
        began = time.monotonic()
        taken = 0
        for step, (part,) in batches.steps(0, ENDLESS):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(job, step)
            loss = module(part.inputs, part.actions, part.mask)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            taken += 1
            if step and time.monotonic() - began < 1.0 and workers == 1:
                continue
            if step == 0:
                turns.begin() if rank == 0 else None
            elif workers == 1 or taken >= 2:
                over = [rank == 0 and not turns.end(taken * batch)]
                if workers > 1:
                    dist.broadcast_object_list(over)
                if over[0]:
                    break
            else:
                continue
            began, taken = time.monotonic(), 0
        if rank == 0:
            turns.save()


class _Loss(torch.nn.Module):
    def __init__(self, policy: torch.nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, *inputs: object) -> torch.Tensor:
        return self.policy.loss(*inputs)[0]


def ours(dataset: Path, entries: list[tuple[int, Turns]], engine: Engine, sink: object) -> None:
    for batch, turns in entries:
        with tempfile.TemporaryDirectory() as scratch:
            job = TrainJob(run_of(batch), ROW, dataset, Path(scratch), engine)
            try:
                train(job, TakingTurns(sink, turns, batch))
            except Over:
                pass


def ray_train(entries: list[tuple[int, Turns]], engine: Engine, job: Path, sink: object) -> None:
    """What `fit` calls in every worker; `job` is the dataset's folder."""
    ours(job, entries, engine, sink)


def contestant(role: str, rank: int, workers: int, folder: Path, order: str, rounds: int) -> None:
    """A process that is started for `bare` or `ours`."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    store = dist.FileStore(str(folder / f"meeting-{role}"), workers)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=workers)
    entries = sizes(folder, role, tuple(order.split(",")), rounds)
    if role == "bare":
        bare(folder.parent / "dataset", entries)
    else:
        ours(folder.parent / "dataset", entries, engine_of(0), NoStore())


def engine_of(zero: int) -> Engine:
    return Engine(zero=zero, checkpoint_every=CHECKPOINT_EVERY)


def make_dataset(folder: Path) -> Path:
    folder.mkdir(parents=True)
    demos = [demonstrate("reach", tabletop.DEMONSTRATIONS_FROM + i, 0) for i in range(40)]
    data = encode_shard(demos, 0)
    (folder / "shard-00000.parquet").write_bytes(data)
    manifest = build_manifest("tabletop", "bench", [("shard-00000.parquet", data)])
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    return folder


def scene(folder: Path, workers: int, rounds: int) -> dict[str, object]:
    """All contestants with so many workers; rates by size, and start-ups."""
    from vla_platform import training
    from vla_platform.cluster import CLUSTERS
    from vla_platform.store import open_store

    alone = ("bare", "ours") if workers == 1 else ("bare",)
    order = (*alone, "ray-zero0", "ray-zero2")
    for batch in BATCHES:
        (folder / str(batch)).mkdir(parents=True)
        (folder / str(batch) / "turn-0").touch()
    command = [sys.executable, __file__, "--contestant"]
    rest = [str(workers), str(folder), ",".join(order), str(rounds)]
    started = [
        subprocess.Popen([*command, role, str(rank), *rest])
        for role in alone
        for rank in range(workers)
    ]
    store = open_store(str(folder.parent / "store"))
    cluster = replace(CLUSTERS["laptop"], workers=(workers, workers), cpus_per_worker=0.25)
    submitted, threads = {}, []
    for zero in (0, 2):
        name = f"ray-zero{zero}"
        work: Callable[..., None] = partial(
            ray_train, sizes(folder, name, order, rounds), engine_of(zero)
        )
        submitted[name] = time.time()
        arguments = (work, _dataset_of, f"{name}-{workers}", "bench", store, cluster, name, ENDLESS)
        threads.append(threading.Thread(target=training.fit, args=arguments))
        threads[-1].start()
        while zero == 0 and not list(folder.glob("*/turn-*")):  # one start-up at a time
            time.sleep(0.1)
        _await_first(folder, name)
    for thread in threads:
        thread.join()
    assert [process.wait() for process in started] == [0] * len(started)
    results = {n: {b: _told(folder, b, n) for b in BATCHES} for n in order}
    starts = {n: round(results[n][BATCHES[0]]["first"] - submitted[n], 2) for n in submitted}
    rates = {n: {b: round(t["rate"], 1) for b, t in by.items()} for n, by in results.items()}
    return {"samples_per_s": rates, "startup_s": starts}


def _await_first(folder: Path, name: str) -> None:
    """Until a contestant has done its first step, so that start-ups do not share the cores."""
    while not (folder / f"started-{name}").exists():
        time.sleep(0.05)


def _dataset_of(dataset: Path, scratch: Path) -> Path:
    return dataset


def _told(folder: Path, batch: int, name: str) -> dict[str, float]:
    return json.loads((folder / str(batch) / f"{name}.json").read_text())


def main() -> None:
    raise NotImplementedError


if __name__ == "__main__":
    main()
