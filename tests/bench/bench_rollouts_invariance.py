"""What batch invariance costs: fixed padded shapes beside batches of just those who wait.

For each architecture, one thread, processor time, observations per second of a policy's `act`:

fixed: as replicas answer, one shape of BATCH whoever waits (or one by one, for policies whose
rounding depends on company). free: a batch of exactly those waiting, padded to the longest prompt.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from vla_platform.batcher import padded

from envs import tabletop
from envs.api import Observation
from envs.benchmarks import benchmark
from tests.vla_platform.test_inference import ARCHITECTURES
from vlm4vla.policies import build_policy
from vlm4vla.run import Run

ROW = benchmark("tabletop")
BATCH = 16
WAITING = (16, 8, 4, 1)


def observations(count: int) -> list[Observation]:
    simulator = tabletop.Tabletop(ROW)
    return [simulator.reset(tabletop.TASKS[i % len(tabletop.TASKS)], i) for i in range(count)]


def fixed(policy: Any, waiting: Sequence[Observation]) -> None:
    """Every observation answered in its group's shape, as `Replica` does."""
    size = BATCH if policy.batch_invariant else 1
    groups: dict[int, list[Observation]] = {}
    for each in waiting:
        groups.setdefault(policy.group(each), []).append(each)
    for length, members in groups.items():
        for start in range(0, len(members), size):
            policy.act(padded(members[start : start + size], size), length)


def rate(action: Any, count: int, rounds: int) -> float:
    """Observations per second of processor time, median of the rounds."""
    spent = []
    for _ in range(rounds):
        began = time.process_time()
        action()
        spent.append(time.process_time() - began)
    return count / statistics.median(spent)


def measure(name: str, rounds: int) -> dict[str, Any]:
    policy = build_policy(
        Run(name, "tabletop", init="scratch").resolved(ROW.recipe),
        ROW.chunk,
        action_spec=ROW.action_spec,
    ).eval()
    seen = observations(BATCH)
    policy.act(seen)
    row: dict[str, Any] = {"backbone": name, "batch": BATCH if policy.batch_invariant else 1}
    for count in WAITING:
        some = seen[:count]
        slow = rate(lambda some=some: fixed(policy, some), count, rounds)
        fast = rate(lambda some=some: policy.act(some), count, rounds)
        row[f"waiting_{count}"] = {"fixed_per_s": slow, "free_per_s": fast, "cost": fast / slow}
    alone = np.concatenate([policy.act(seen[i : i + 1]) for i in range(BATCH)])
    row["largest_difference_if_free"] = float(np.abs(policy.act(seen) - alone).max())
    return row


def bench(rounds: int) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    table = [measure(name, rounds) for name in ARCHITECTURES]
    for row in table:
        costs = ", ".join(
            f"{count} waiting {row[f'waiting_{count}']['fixed_per_s']:.0f}/s fixed, "
            f"{row[f'waiting_{count}']['free_per_s']:.0f}/s free"
            for count in WAITING
        )
        print(f"{row['backbone']:<22} {costs}", flush=True)
    return table
