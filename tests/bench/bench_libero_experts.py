"""Success of LIBERO's scripted expert, task by task, on initial states it was not written with.

    python tests/bench/bench_libero_experts.py libero_object libero_spatial --states 10

Writes tests/bench/libero_experts.json after every task and goes on with what is missing there,
so that it can be run in slices. The states are LIBERO's stored ones, counted from FIRST.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

from envs.benchmarks import BENCHMARKS
from envs.process import SimulatorProcess, interpreter_for

FIRST = 40
"""The expert was written against sampled scenes and the stored states below this one."""
FOLDER = Path(__file__).parent
SUITES = ("libero_object", "libero_spatial", "libero_goal", "libero_10")


def measure(process: SimulatorProcess, task: str, states: int) -> dict[str, float]:
    """Successes and mean steps of a success; seconds are an episode's wall time."""
    began = time.perf_counter()
    shown = [process.demonstrate(task, FIRST + i, 0) for i in range(states)]
    won = [each.steps for each in shown if each.success]
    return {
        "successes": len(won),
        "trials": states,
        "steps": sum(won) / max(len(won), 1),
        "seconds": (time.perf_counter() - began) / states,
    }


def show(measured: dict[str, dict[str, dict]]) -> None:
    for suite, tasks in measured.items():
        won, tried = (sum(t[key] for t in tasks.values()) for key in ("successes", "trials"))
        print(f"{suite}: {won}/{tried}")
        for task, found in tasks.items():
            print(f"  {found['successes']}/{found['trials']}  {found['steps']:3.0f} steps  {task}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="*", default=SUITES, help=f"of {', '.join(SUITES)}")
    parser.add_argument("--states", type=int, default=10, help="episodes of each task")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no task after these")
    parser.add_argument("--json", type=Path, default=FOLDER / "libero_experts.json")
    options = parser.parse_args()
    measured = json.loads(options.json.read_text()) if options.json.exists() else {}
    until = time.monotonic() + options.seconds
    for suite in options.suites:
        row = dataclasses.replace(BENCHMARKS[suite], simulator="tests.envs.libero_plain:Unseen")
        with SimulatorProcess(row, interpreter_for("libero")) as process:
            for task in row.tasks:
                if time.monotonic() > until or task in measured.get(suite, {}):
                    continue
                found = measure(process, task, options.states)
                measured.setdefault(suite, {})[task] = found
                options.json.write_text(json.dumps(measured, indent=1) + "\n")
    show(measured)


if __name__ == "__main__":
    main()
