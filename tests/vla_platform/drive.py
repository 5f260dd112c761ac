"""A driver to be killed: evaluates one checkpoint on a running Ray cluster, like a job would.

python -m tests.vla_platform.drive keep                start a cluster, print its address, stay
python -m tests.vla_platform.drive play '{"store": …}'  play what is missing, print the tally
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from vla_platform import evaluation
from vla_platform.artifacts import Checkpoint
from vla_platform.batcher import Policy
from vla_platform.cluster import CLUSTERS
from vla_platform.evaluation import Wanted
from vla_platform.ledger import Ledger
from vla_platform.rollouts import Pool
from vla_platform.store import open_store

from envs.api import Benchmark, Observation
from envs.benchmarks import benchmark

HORIZON = 2
CLUSTER = replace(CLUSTERS["laptop"], slots=4, hosts=2, batch=4)
HEAVY = replace(CLUSTERS["laptop"], slots=2, hosts=1, batch=2, simulator_cores=2)
SPOILS = {
    "nan": lambda chunks: np.full_like(chunks, np.nan),
    "shape": lambda chunks: chunks[..., :6],
}


class Spoiled:
    """A policy that answers nonsense after so many good batches."""

    def __init__(self, policy: Policy, how: str, good: int) -> None:
        self.policy, self.spoil, self.left = policy, SPOILS[how], good
        self.batch_invariant = policy.batch_invariant

    def group(self, observation: Observation) -> int:
        return self.policy.group(observation)

    def act(self, observations: Sequence[Observation], length: int | None) -> np.ndarray:
        chunks = self.policy.act(observations, length)
        self.left -= 1
        return chunks if self.left >= 0 else self.spoil(chunks)

    def __getattr__(self, name: str) -> Any:
        if name == "policy":
            raise AttributeError(name)
        return getattr(self.policy, name)


def load(how: str, folder: Path) -> Any:
    from vlm4vla.export import load_policy  # in replicas alone: a driver needs no torch

    policy = load_policy(folder)
    return policy if how == "good" else Spoiled(policy, how, good=10)


def row_of(spec: dict[str, Any]) -> Benchmark:
    """The benchmark; with "steps", episodes end after so many."""
    row = benchmark(spec.get("benchmark", "tabletop"))
    return replace(row, step_limits={"*": spec["steps"]}) if "steps" in spec else row


def wanted_of(spec: dict[str, Any]) -> Wanted:
    row = row_of(spec)
    return Wanted(
        checkpoint=Checkpoint(*spec["checkpoint"]),
        benchmark=row,
        horizon=HORIZON,
        fingerprint=spec["fingerprint"],
        tasks=tuple(spec["tasks"]),
        trials=spec["trials"],
    )


def play(spec: dict[str, Any]) -> None:
    import ray

    ray.init(address=spec["address"], logging_level="ERROR", log_to_driver=False)
    store = open_store(spec["store"])
    cluster = CLUSTER if wanted_of(spec).benchmark.name == "tabletop" else HEAVY
    with ExitStack() as open_pools:
        tally = evaluation.play(
            Ledger(store),
            [wanted_of(spec)],
            lambda: open_pools.enter_context(
                Pool(store, partial(load, spec.get("policy", "good")), cluster)
            ),
            lambda tally: None,
        )
    errors = [reason for _, reason in tally.errors]
    print(json.dumps({"total": tally.total, "done": tally.done, "errors": errors}), flush=True)  # noqa: T201


def keep(dashboard: bool) -> None:
    import ray

    with tempfile.TemporaryDirectory(prefix="fk-", dir="/tmp", ignore_cleanup_errors=True) as name:
        start_ray(name, dashboard)
        print(ray.get_runtime_context().gcs_address, flush=True)  # noqa: T201
        sys.stdin.read()  # until whoever started us leaves
        ray.shutdown()


def start_ray(folder: str, dashboard: bool, attempts: int = 5) -> None:
    """Ray gives its own processes 30 s to come up, which a busy machine may exceed."""
    import ray

    for attempt in range(attempts):
        try:
            ray.init(
                address="local",
                num_cpus=4,
                include_dashboard=dashboard,
                dashboard_port=0,
                object_store_memory=200 << 20,
                _temp_dir=f"{folder}/{attempt}",
            )
            return
        except Exception:
            ray.shutdown()
            if attempt == attempts - 1:
                raise


if __name__ == "__main__":
    keep("dashboard" in sys.argv) if sys.argv[1] == "keep" else play(json.loads(sys.argv[2]))
