"""Part (a): our pool on real LIBERO, beside the bare loop and beside the peer.

One constant chunk in place of a policy, so that every episode lasts its full number of steps and
only the machinery around the simulator differs. The pool goes its whole way: Ray, the host, a
real inference actor, and a commit per episode to a store.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from vla_platform import session
from vla_platform.cluster import CLUSTERS
from vla_platform.evaluation import Wanted, environment
from vla_platform.ledger import Ledger
from vla_platform.rollouts import Pool
from vla_platform.store import Store, open_store

from envs.api import Benchmark, Observation
from envs.benchmarks import benchmark
from tests.bench import bench_rollouts_peer as peer
from tests.bench.bench_control_plane import checkpoint, play
from tests.bench.bench_rollouts_bare import Loops, Rate, pooled, processor_seconds
from tests.bench.bench_rollouts_loop import ACTION, WARM_UP

SUITE, TASKS, CHUNK = "libero_object", 1, 8
PROCESSES = len(os.sched_getaffinity(0))
"""As many simulators as cores that we may use (`taskset`)."""
BESIDE_LIMIT = PROCESSES + 1
"""…and one more, which has a core while another simulator waits for its policy."""
WHOLE_TURNS = PROCESSES * BESIDE_LIMIT
"""Episodes that leave neither the limit's processes nor the pool's idle: multiples of this."""
TWO_VIEWS = {"image_size": 256, "views": ["robot0_eye_in_hand"]}


@dataclass(frozen=True)
class Size:
    """How much is measured.

    trials: episodes at the first horizon; shorter horizons take longer, so they get fewer.
    rounds: how often limit and pool take turns. One task: compiling a scene is not timed.
    """

    steps: int = 200
    trials: int = 2 * WHOLE_TURNS
    rounds: int = 2
    peer_trials: int = 2 * PROCESSES
    horizons: tuple[int, ...] = (8, 4, 2, 1)

    def episodes(self, horizon: int) -> int:
        return max(WHOLE_TURNS, self.trials * horizon // CHUNK)


class Constant:
    """The same chunk whatever it sees."""

    batch_invariant = True

    def act(self, observations: Sequence[Observation], length: int | None) -> np.ndarray:
        return np.asarray([[ACTION] * CHUNK] * len(observations), np.float32)

    def group(self, observation: Observation) -> int:
        return 0


def load(folder: Path) -> Constant:
    return Constant()


def row_of(steps: int, **changes: Any) -> Benchmark:
    row = benchmark(SUITE)
    return replace(
        row,
        tasks=row.tasks[:TASKS],
        chunk=CHUNK,
        horizons=(8, 4, 2, 1),
        step_limits={"*": steps},
        simulator_args={**row.simulator_args, **changes},
    )


class OurPool:
    """One pool for every measurement of a row, its children warm before anything is timed."""

    def __init__(self, store: Store, folder: Path, row: Benchmark, simulators: int) -> None:
        self.store, self.row, self.measured = store, row, 0
        self.policy = checkpoint(store, folder)
        self.fingerprint = environment(Ledger(store), row)
        cluster = CLUSTERS["laptop"]
        self.pool = Pool(
            store,
            load,
            replace(
                cluster,
                hosts=1,
                replicas=1,
                slots=simulators,
                simulator_cores=simulators,
                batch=simulators,
            ),
        )
        self._play(trials=simulators, horizon=CHUNK, first=WARM_UP, tasks=row.tasks[:1])

    def _play(self, **changes: Any) -> Rate:
        """These episodes, each under a key of its own."""
        self.measured += 1
        fields = {"tasks": self.row.tasks, "mode": f"measurement-{self.measured}", **changes}
        wanted = Wanted(self.policy, self.row, fingerprint=self.fingerprint, **fields)
        before, began = processor_seconds(os.getpid()), time.monotonic()
        steps = play(self.pool, wanted).steps
        wall = time.monotonic() - began
        return Rate(steps, wall, processor_seconds(os.getpid()) - before)

    def measure(self, trials: int, horizon: int) -> Rate:
        return self._play(trials=trials, horizon=horizon)


@contextmanager
def our_pool(row: Benchmark, simulators: int) -> Iterator[OurPool]:
    import ray

    session.prepare()
    with tempfile.TemporaryDirectory(prefix="br-", dir="/tmp", ignore_cleanup_errors=True) as name:
        ray.init(address="local", num_cpus=8, include_dashboard=False, _temp_dir=f"{name}/ray")
        try:
            store = open_store(f"{name}/store")
            ours = OurPool(store, Path(name, "policy"), row, simulators)
            with ours.pool:
                yield ours
        finally:
            ray.shutdown()


def against_limit(row: Benchmark, size: Size) -> list[dict[str, Any]]:
    """Per horizon: the limit and our pool in turns, so that both see the same machine."""
    table = []
    with Loops(row, PROCESSES) as loops, our_pool(row, BESIDE_LIMIT) as ours:
        for horizon in size.horizons:
            trials = size.episodes(horizon)
            limits, pools = [], []
            for _ in range(size.rounds):
                limits.append(loops.measure(trials, horizon))
                pools.append(ours.measure(trials, horizon))
            table.append(entry(horizon, trials, limits, pools))
            print(line(table[-1]), flush=True)
    return table


def entry(
    horizon: int, trials: int, limits: Sequence[Rate], pools: Sequence[Rate]
) -> dict[str, Any]:
    """One row. Processor time also holds on a busy machine, but knows nothing of idle cores."""
    limit, pool = pooled(limits), pooled(pools)
    rate, bound = pool.steps / pool.wall_s, limit.steps / limit.wall_s
    return {
        "horizon": horizon,
        "limit_steps_per_s": bound,
        "pool_steps_per_s": rate,
        "to_limit": rate / bound,
        "limit_steps_per_cpu_s": limit.steps / limit.cpu_s,
        "pool_steps_per_cpu_s": pool.steps / pool.cpu_s,
        "to_limit_by_cpu": (pool.steps / pool.cpu_s) / (limit.steps / limit.cpu_s),
        "rounds_limit": [each.steps / each.wall_s for each in limits],
        "rounds_pool": [each.steps / each.wall_s for each in pools],
        "episodes_a_round": TASKS * trials,
    }


def beside_peer(size: Size, **changes: Any) -> Rate:
    """Our pool at the peer's chunk, measured when the peer is: machines change by the minute."""
    with our_pool(row_of(size.steps, **changes), PROCESSES) as ours:
        return ours.measure(size.trials, CHUNK)


def against_peer(size: Size, table: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The peer as it comes, rendering every step at any horizon; or why it is not there."""
    try:
        peer.interpreter()
    except peer.PeerMissingError as missing_peer:
        print(f"no peer: {missing_peer}", flush=True)
        return {"missing": str(missing_peer)}
    before = beside_peer(size)
    theirs = peer.measure(SUITE, TASKS, size.peer_trials, size.steps, CHUNK, PROCESSES)
    # Two views of 256 pixels, rendered at replans, are the peer's own cameras.
    both, ours = beside_peer(size, **TWO_VIEWS), pooled([before, beside_peer(size)])
    rate, by_cpu = theirs["steps_per_s"], theirs["steps_per_cpu_s"]
    found = {
        "peer": theirs,
        "pool_steps_per_s": ours.steps / ours.wall_s,
        "pool_two_views_steps_per_s": both.steps / both.wall_s,
        "pool_two_views_steps_per_cpu_s": both.steps / both.cpu_s,
        "to_peer": ours.steps / ours.wall_s / rate,
        "to_peer_two_views": both.steps / both.wall_s / rate,
        "to_peer_by_cpu": ours.steps / ours.cpu_s / by_cpu,
        "to_peer_two_views_by_cpu": both.steps / both.cpu_s / by_cpu,
        "to_peer_by_horizon": {row["horizon"]: row["pool_steps_per_s"] / rate for row in table},
    }
    print(
        f"peer {rate:.1f} steps/s; ours with one 224 px view {found['to_peer']:.1f}x "
        f"({found['to_peer_by_cpu']:.1f}x by processor time), with its two 256 px views "
        f"{found['to_peer_two_views']:.1f}x ({found['to_peer_two_views_by_cpu']:.1f}x)",
        flush=True,
    )
    return found


def bench(size: Size) -> dict[str, Any]:
    """Everything of part (a)."""
    table = against_limit(row_of(size.steps), size)
    return {"to_limit": table[0]["to_limit"], "horizons": table, **against_peer(size, table)}


def line(row: dict[str, Any]) -> str:
    return (
        f"horizon {row['horizon']}: limit {row['limit_steps_per_s']:.1f} steps/s, pool "
        f"{row['pool_steps_per_s']:.1f} ({100 * row['to_limit']:.1f}%, by processor time "
        f"{100 * row['to_limit_by_cpu']:.1f}%)"
    )
