"""Control steps per second: chunked rendering beside rendering every step, in the same run.

    make bench-simulators            # QUICK=1 for a few minutes instead of twenty
    python tests/bench/bench_simulators.py libero_object --json tests/bench/simulators.json

Two baselines. `published` is the simulator's own code as evaluators run it (PLAIN): its resets
and all its cameras at every step. `every step` draws the policy's one camera at every
step: LIBERO by its own code with its hard resets, the others by our adapter with its resets.
Resets are in every figure, the first start is not. On a shared machine compare steps per CPU
second.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from measured import write

from envs.api import Benchmark
from envs.benchmarks import BENCHMARKS
from envs.process import SimulatorMissing, SimulatorProcess, interpreter_for

EPISODE_STEPS = 200
HELD = 8
CAMERAS = ["agentview", "robot0_eye_in_hand"]
PLAIN = {
    "libero": ("tests.envs.libero_plain:Plain", {"fresh": False, "cameras": CAMERAS}),
    "calvin": ("tests.envs.calvin_plain:Plain", {"fresh": False}),
    "simpler": ("tests.envs.simpler_plain:Plain", {}),
}
"""Each simulator's published loop, and what it is asked for: one process for all episodes."""
EVERY_STEP = {"libero": ("tests.envs.libero_plain:Plain", {"fresh": False})}
"""Loops that draw one camera at every step, where it is not our own adapter that records."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured: ours at these horizons; `steps` are one episode's, its reset included."""

    horizons: tuple[int, ...]
    steps: int


PLANS = {
    "libero_object": Plan((8, 4, 2, 1), steps=EPISODE_STEPS),
    "calvin": Plan((10, 4, 2, 1), steps=EPISODE_STEPS),
    "simpler": Plan((4, 2, 1), steps=60),
}
EPISODES = 2
"""Of ours at each horizon; of what draws at every step, one."""


@dataclasses.dataclass
class Timing:
    """One process's share of a measurement. Seconds are of wall and of CPU."""

    steps: int = 0
    episodes: int = 0
    chunks: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    resets: float = 0.0
    reset_cpu: float = 0.0
    rss_mb: float = 0.0


def cpu_seconds(process: SimulatorProcess) -> float:
    """User and system time of the child so far."""
    stat = Path(f"/proc/{process._child.popen.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def action_table() -> np.ndarray:
    """Random directions held for 8 steps, the same for every measurement; [4096, 7]."""
    table = np.random.default_rng(0).uniform(-0.3, 0.3, (512, 7)).repeat(HELD, 0)
    table[:, 6] = np.where(table[:, 6] < 0, -1, 1)
    return table.astype(np.float32)


def measure(process: SimulatorProcess, task: str, steps: int, horizon: int, record: bool) -> Timing:
    """Episodes of at most EPISODE_STEPS until `steps` control steps are done."""
    table, timing = action_table(), Timing()
    cpu, began = cpu_seconds(process), time.perf_counter()
    while timing.steps < steps:
        start, start_cpu = time.perf_counter(), cpu_seconds(process)
        process.reset(task, timing.episodes % 10, timing.episodes, record=record)
        timing.resets += time.perf_counter() - start
        timing.reset_cpu += cpu_seconds(process) - start_cpu
        timing.episodes += 1
        within = 0
        while within < EPISODE_STEPS and timing.steps < steps:
            result = process.execute(table[within : within + horizon])
            within += result.steps
            timing.steps += result.steps
            timing.chunks += 1
            if result.done:
                break
    timing.wall = time.perf_counter() - began
    timing.cpu = cpu_seconds(process) - cpu
    timing.rss_mb = process.rss_bytes() / 2**20
    return timing


Measure = Callable[..., dict[str, float]]


@contextlib.contextmanager
def group(row: Benchmark, count: int, interpreter: str) -> Iterator[Measure]:
    """`count` processes of one row, started; measures in all of them at once."""
    processes = [SimulatorProcess(row, interpreter) for _ in range(count)]
    task = row.tasks[0]
    with ThreadPoolExecutor(count) as pool, contextlib.ExitStack() as stack:
        for process in processes:
            stack.enter_context(process)
        list(pool.map(lambda process: process.reset(task, 0, 0), processes))

        def together(**what) -> dict[str, float]:
            return summary(list(pool.map(lambda p: measure(p, task, **what), processes)))

        yield together


def summary(timings: list[Timing]) -> dict[str, float]:
    """Figures of all processes together; memory of the largest."""
    steps = sum(timing.steps for timing in timings)
    chunks = sum(timing.chunks for timing in timings)
    return {
        "steps_per_s": steps / max(timing.wall for timing in timings),
        "steps_per_cpu_s": steps / sum(timing.cpu for timing in timings),
        "reset_s": sum(t.resets for t in timings) / sum(t.episodes for t in timings),
        "chunk_s": sum(t.wall - t.resets for t in timings) / chunks,
        "chunk_cpu_s": sum(t.cpu - t.reset_cpu for t in timings) / chunks,
        "rss_mb": max(timing.rss_mb for timing in timings),
    }


def baselines(row: Benchmark) -> dict[str, tuple[Benchmark, bool]]:
    """The rows that draw at every step, and whether they do so by recording."""

    def plain(adapter: str, args: dict) -> tuple[Benchmark, bool]:
        wanted = {**row.simulator_args, **args}
        return dataclasses.replace(row, simulator=adapter, simulator_args=wanted), False

    name = row.simulator
    every = plain(*EVERY_STEP[name]) if name in EVERY_STEP else (row, True)
    return {"published": plain(*PLAIN[name]), "every step": every}


def run(row: Benchmark, plan: Plan, episodes: int, count: int) -> list[dict]:
    """Both baselines over `steps`, and ours at each horizon; in `count` processes at once."""
    interpreter, found = interpreter_for(row.simulator), {}
    steps, horizons = plan.steps, plan.horizons
    for name, (plain, record) in baselines(row).items():
        with group(plain, count, interpreter) as together:
            found[name] = together(steps=steps, horizon=horizons[0], record=record)
    slow = dict(found)
    with group(row, count, interpreter) as together:
        for horizon in horizons:
            found[horizon] = together(steps=episodes * steps, horizon=horizon, record=False)
    return [
        {
            "processes": count,
            "drawn": drawn if isinstance(drawn, str) else f"every {drawn}",
            "horizon": None if isinstance(drawn, str) else drawn,
            **figures,
            **{f"times_{name}": times(figures, slow[name]) for name in slow},
            **{
                f"times_{name}, cpu": times(figures, slow[name], "steps_per_cpu_s") for name in slow
            },
        }
        for drawn, figures in found.items()
    ]


def times(ours: dict, theirs: dict, what: str = "steps_per_s") -> float:
    return ours[what] / theirs[what]


def split(rows: list[dict]) -> dict[str, float]:
    """Physics and rendering of one step (CPU ms): a line through the chunks of each length."""
    fewest = min(r["processes"] for r in rows)
    ours = [r for r in rows if r["processes"] == fewest and r["horizon"]]
    points = [(r["horizon"], r["chunk_cpu_s"]) for r in ours]
    physics, render = np.polyfit(*zip(*points, strict=True), 1) * 1e3
    return {
        "physics_ms": physics,
        "render_ms": render,
        "render_share": render / (physics + render),
    }


COLUMNS = (
    ("steps/s", "steps_per_s", "{:.1f}"),
    ("per CPU s", "steps_per_cpu_s", "{:.1f}"),
    ("× published", "times_published", "{:.1f}"),
    ("in CPU", "times_published, cpu", "{:.1f}"),
    ("× every step", "times_every step", "{:.1f}"),
    ("in CPU", "times_every step, cpu", "{:.1f}"),
    ("reset s", "reset_s", "{:.2f}"),
    ("MB", "rss_mb", "{:.0f}"),
)


def show(name: str, measured: dict) -> None:
    print(f"\n{name}\nprocesses  {'drawn':<12}" + "".join(f"{c[0]:>14}" for c in COLUMNS))
    for row in measured["rows"]:
        cells = "".join(f"{form.format(row[key]):>14}" for _, key, form in COLUMNS)
        print(f"{row['processes']:<9}  {row['drawn']:<12}{cells}")
    parts = measured["split"].items()
    print("one step: " + ", ".join(f"{key} {value:.3g}" for key, value in parts), flush=True)


def bench(name: str, processes: list[int], quick: bool) -> Iterator[dict]:
    """What is measured so far, after each number of processes."""
    plan, row = PLANS[name], BENCHMARKS[name]
    if quick:
        plan = Plan((plan.horizons[0], plan.horizons[-1]), plan.steps)
    episodes = 1 if quick else EPISODES
    measured: dict = {"steps": plan.steps, "episodes": episodes, "rows": []}
    for count in processes:
        measured["rows"] += run(row, plan, episodes, count)
        yield {**measured, "split": split(measured["rows"])}


def keep(path: Path, measured: dict[str, dict]) -> None:
    """Add to what other calls have written there."""
    before = json.loads(path.read_text()) if path.exists() else {}
    write(path, {**before, **measured})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("benchmarks", nargs="*", help=f"of {', '.join(PLANS)}; all by default")
    parser.add_argument("--processes", type=int, nargs="+", help="1 and 2 by default")
    parser.add_argument("--quick", action="store_true", help="one process, fewer steps")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    processes = options.processes or ([1] if options.quick else [1, 2])
    for name in options.benchmarks or PLANS:
        try:
            for measured in bench(name, processes, options.quick):
                show(name, measured)
                if options.json:
                    keep(options.json, {name: measured})
        except SimulatorMissing as missing:
            print(f"{name} is left out: {missing}")


if __name__ == "__main__":
    main()
