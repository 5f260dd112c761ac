"""LIBERO without any platform: the limit that the pool is measured against.

    LIBERO_PYTHON -m tests.bench.bench_rollouts_loop ROW

Runs in LIBERO's own interpreter: our adapter in a plain loop (frames rendered at replans only,
the cheap reset) with one constant chunk. After a first episode it says READY; then each line
of its input, {"episodes": [[task, state], …], "horizon": h}, is played and timed.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

from envs.libero import Libero
from envs.worker import benchmark_of

WARM_UP = 40
"""The initial state of the untimed first episode; measured ones begin at 0."""
ACTION = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def episode(simulator: Libero, task: str, state: int, horizon: int) -> int:
    """Play it to its step limit; returns the number of control steps."""
    chunk = np.asarray([ACTION] * horizon, np.float32)
    simulator.reset(task, state, state, False)
    steps = 0
    while True:
        result = simulator.execute(chunk)
        steps += result.steps
        if result.done:
            return steps


def main() -> None:
    row = benchmark_of(json.loads(sys.argv[1]))
    simulator = Libero(row)
    episode(simulator, row.tasks[0], WARM_UP, row.chunk)
    print("READY", flush=True)
    for line in sys.stdin:
        print(json.dumps(timed(simulator, json.loads(line))), flush=True)


def timed(simulator: Libero, share: dict[str, Any]) -> dict[str, float]:
    began = time.monotonic()
    steps = sum(
        episode(simulator, task, state, share["horizon"]) for task, state in share["episodes"]
    )
    return {"steps": steps, "seconds": time.monotonic() - began}


if __name__ == "__main__":
    main()
