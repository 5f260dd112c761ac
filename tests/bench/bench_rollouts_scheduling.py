"""What the driver spends per episode as the number of episodes grows: hosts answer at once.

Real Ray actors in the place of rollout hosts, which play nothing: what is left is the driver's
own work (queue, demand, hand-out, tally) and Ray's price of a call.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from dataclasses import replace
from typing import Any

import ray
from vla_platform.artifacts import Checkpoint
from vla_platform.assignments import Assignment
from vla_platform.cluster import CLUSTERS
from vla_platform.fleet import Member
from vla_platform.rollouts import Pool
from vla_platform.rows import Row
from vla_platform.store import open_store

from envs.benchmarks import benchmark
from tests.bench.bench_ledger import cell_of

SLOTS, HOSTS = 64, 2
ROW = benchmark("tabletop")


class Instant:
    """A host whose episodes are over at once."""

    def ready(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def play(self, assignment: Assignment) -> Row:
        writer = uuid.uuid4().hex
        return Row(assignment.episode, True, True, True, 40, 10, 0.0, time.time(), writer)

    def close(self) -> None:
        pass


class InstantPool(Pool):
    def _member(self, simulator: str) -> Member:
        actor: Any = ray.remote(Instant).options(num_cpus=0).remote()
        return Member(actor, simulator, SLOTS, actor.ready.remote())


def assignments(size: int) -> list[Assignment]:
    policy = Checkpoint("bench", 0, f"{size:064d}")
    return [Assignment(policy, ROW, episode) for episode in cell_of(size)[1]]


def measure(size: int) -> dict[str, float]:
    cluster = replace(CLUSTERS["laptop"], slots=SLOTS, hosts=HOSTS)
    left = assignments(size)
    with (
        tempfile.TemporaryDirectory() as folder,
        InstantPool(open_store(folder), None, cluster) as pool,
    ):
        pool.run(left[: SLOTS * HOSTS])  # hosts and connections are up
        began, spent = time.perf_counter(), time.process_time()
        tally = pool.run(left)
        wall, spent = time.perf_counter() - began, time.process_time() - spent
    assert tally.done == size and not tally.errors
    return {
        "episodes": size,
        "scheduling_ms": 1e3 * wall / size,
        "driver_cpu_ms": 1e3 * spent / size,
    }


def bench(sizes: tuple[int, ...]) -> list[dict[str, float]]:
    """A measurement per size on a Ray of this process's own."""
    with tempfile.TemporaryDirectory(prefix="bs-", dir="/tmp", ignore_cleanup_errors=True) as name:
        ray.init(address="local", num_cpus=4, include_dashboard=False, _temp_dir=name)
        try:
            table = [measure(size) for size in sizes]
        finally:
            ray.shutdown()
    for row in table:
        print(
            f"{row['episodes']:>8,} episodes: {row['scheduling_ms']:.2f} ms each, of which "
            f"{row['driver_cpu_ms']:.2f} ms of the driver's processor",
            flush=True,
        )
    return table
