"""Collect demonstrations with a simulator's scripted expert, a shard per Ray task."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from envs.api import Benchmark, Demonstration
from envs.hashing import stable_hash
from envs.process import SimulatorProcess
from envs.worker import has_expert
from vla_platform import artifacts
from vla_platform.prepare import note_key, results
from vla_platform.store import Store

log = logging.getLogger(__name__)

SHARDS = 24
"""Shards of a dataset, each a task for one core…"""
LEAST = 4
"""…unless that would leave fewer episodes than this in a shard."""
Plan = Sequence[tuple[str, int]]
Encode = Callable[[Iterable[Demonstration], int], bytes]
Finish = Callable[[str, str, Iterable[tuple[str, bytes]]], Any]


@dataclass(frozen=True)
class Demonstrations:
    """Which expert episodes make a dataset: (task, how many), from initial state `first` on."""

    counts: tuple[tuple[str, int], ...]
    first: int
    seed: int = 0

    @staticmethod
    def of(
        row: Benchmark, tasks: Sequence[str], each: int | None = None, seed: int = 0
    ) -> Demonstrations:
        """`each` per task, or as many as the benchmark's row says.

        ValueError for a benchmark that has no expert.
        """
        if not has_expert(row.simulator):
            raise ValueError(without_expert(row))
        counts = tuple((task, each or row.demonstrations_of(task)) for task in tasks)
        return Demonstrations(counts, row.demonstrations_from, seed)

    def plan(self) -> list[tuple[str, int]]:
        """(task, initial state) of every demonstration to try, the tasks mixed."""
        most = max(count for _, count in self.counts)
        return [(task, self.first + i) for i in range(most) for task, n in self.counts if i < n]

    def id(self, benchmark: Benchmark, fingerprint: str) -> str:
        plan = [self.counts, self.first, self.seed]
        return f"{benchmark.name}-{stable_hash([plan, fingerprint])[:12]}"


def without_expert(row: Benchmark) -> str:
    """What to do where no demonstrations can be collected."""
    name = row.dataset or "NAME, which its row names as `dataset`"
    return (
        f"{row.name} has no scripted expert: pass --dataset ID of what there is, or prepare its "
        f"demonstrations: jobs/prepare_data.py FORMAT PATH --name {name}"
    )


def collect(
    store: Store,
    dataset: str,
    benchmark: Benchmark,
    wanted: Demonstrations,
    encode: Encode,
    finish: Finish,
    progress: Callable[[int, int, int], None],
) -> Any:
    """Run the plan, keep what succeeded, and write the manifest last; resumes by shard.

    Laid out as `vla_platform.prepare` does.

    encode: demonstrations and the first episode's number to shard bytes. finish: (name,
    source, shards) to the manifest. progress: (tried, kept, total). Returns the manifest.
    """
    plan, seed = wanted.plan(), wanted.seed
    per_shard = max(LEAST, -(-len(plan) // SHARDS))
    parts = [plan[first : first + per_shard] for first in range(0, len(plan), per_shard)]
    # Anywhere: inside a Tune trial a task would else have to fit into the trial's own share.
    task = ray.remote(num_cpus=1, max_retries=3, scheduling_strategy="DEFAULT")(_shard)
    flying = [
        task.remote(store, dataset, benchmark, number, part, number * per_shard, seed, encode)
        for number, part in enumerate(parts)
    ]
    tried = kept = 0
    for note in results(flying):
        tried, kept = tried + note["tried"], kept + note["kept"]
        progress(tried, kept, len(plan))
    source = f"scripted expert of {benchmark.name}, seed {seed}, {tried} tried, {kept} kept"
    manifest = finish(benchmark.name, source, _stored(store, dataset, len(parts)))
    store.put(f"datasets/{dataset}/{artifacts.MANIFEST}", manifest.to_bytes())
    return manifest


def _shard(
    store: Store,
    dataset: str,
    benchmark: Benchmark,
    number: int,
    part: Plan,
    first_episode: int,
    seed: int,
    encode: Encode,
) -> dict[str, int]:
    """One shard; its note is put last, so a repeated task finds finished work."""
    noted = note_key(dataset, number)
    if store.exists(noted):
        return json.loads(store.get(noted))
    with SimulatorProcess(benchmark) as process:
        demos = [process.demonstrate(task, state, seed + state) for task, state in part]
    kept = [demo for demo in demos if demo.success]
    if kept:
        store.put(_shard_key(dataset, number), encode(kept, first_episode))
    note = {"tried": len(demos), "kept": len(kept)}
    store.put(noted, json.dumps(note).encode())
    return note


def _stored(store: Store, dataset: str, count: int) -> Iterator[tuple[str, bytes]]:
    for number in range(count):
        key = _shard_key(dataset, number)
        if store.exists(key):
            yield key.rpartition("/")[2], store.get(key)


def _shard_key(dataset: str, number: int) -> str:
    return f"datasets/{dataset}/shard-{number:05d}.parquet"
