"""Control steps per second: chunked rendering beside rendering every step, in the same run.

    python tests/bench/bench_simulators.py libero_object --steps 400 --processes 1 2 --json out.json

The baseline renders one camera every step. LIBERO's is its own code with hard resets, as
evaluators run it; the others' is our adapter asked to record, with our resets. Resets are in
every figure, the first start is not. On a shared machine compare steps per CPU second.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from envs.api import Benchmark
from envs.benchmarks import BENCHMARKS
from envs.process import SimulatorProcess, interpreter_for

EPISODE_STEPS = 200
HELD = 8
PLAIN = {"libero": ("tests.envs.libero_plain:Plain", {"fresh": False})}


@dataclasses.dataclass
class Timing:
    """One process's share of a measurement. Seconds are of wall and of CPU."""

    steps: int = 0
    episodes: int = 0
    chunks: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    resets: float = 0.0
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
    process.reset(task, 0, 0, record=record)
    cpu, began = cpu_seconds(process), time.perf_counter()
    while timing.steps < steps:
        start = time.perf_counter()
        process.reset(task, timing.episodes % 10, timing.episodes, record=record)
        timing.resets += time.perf_counter() - start
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


def together(rows: list[Benchmark], interpreter: str, **measurement) -> dict[str, float]:
    """The same measurement in one process per row at once; figures of all together."""
    processes = [SimulatorProcess(row, interpreter) for row in rows]
    task = rows[0].tasks[0]
    with ThreadPoolExecutor(len(rows)) as pool:
        list(pool.map(lambda process: process.reset(task, 0, 0), processes))
        timings = list(pool.map(lambda p: measure(p, task, **measurement), processes))
    for process in processes:
        process.close()
    steps = sum(timing.steps for timing in timings)
    return {
        "steps_per_s": steps / max(timing.wall for timing in timings),
        "steps_per_cpu_s": steps / sum(timing.cpu for timing in timings),
        "reset_s": sum(t.resets for t in timings) / sum(t.episodes for t in timings),
        "rss_mb": max(timing.rss_mb for timing in timings),
        "s_per_chunk": sum(t.wall - t.resets for t in timings) / sum(t.chunks for t in timings),
    }


def baseline_row(row: Benchmark) -> tuple[Benchmark, bool]:
    """The row that renders every step, and whether it does so by recording."""
    if row.simulator not in PLAIN:
        return row, True
    adapter, args = PLAIN[row.simulator]
    return dataclasses.replace(
        row, simulator=adapter, simulator_args={**row.simulator_args, **args}
    ), False


def run(row: Benchmark, options: argparse.Namespace) -> list[dict]:
    interpreter = interpreter_for(row.simulator)
    plain, record = baseline_row(row)
    results = []
    for count in options.processes:
        base = together([plain] * count, interpreter, steps=options.steps, horizon=8, record=record)
        results.append({"processes": count, "horizon": "every step", **base})
        for horizon in options.horizons:
            ours = together(
                [row] * count, interpreter, steps=options.steps, horizon=horizon, record=False
            )
            ours["times"] = ours["steps_per_s"] / base["steps_per_s"]
            ours["times_cpu"] = ours["steps_per_cpu_s"] / base["steps_per_cpu_s"]
            results.append({"processes": count, "horizon": horizon, **ours})
            show(results[-1])
    return results


def split(results: list[dict]) -> dict[str, float]:
    """Physics and rendering of one step (s), from chunks of two lengths in one process."""
    chunks = {r["horizon"]: r["s_per_chunk"] for r in results if r["processes"] == 1}
    lengths = sorted(length for length in chunks if length != "every step")
    short, long = lengths[0], lengths[-1]
    physics = (chunks[long] - chunks[short]) / (long - short)
    return {"physics_s": physics, "render_s": chunks[short] - short * physics}


def show(result: dict) -> None:
    figures = {name: value for name, value in result.items() if isinstance(value, float)}
    text = "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
    print(f"{result['processes']} process(es), horizon {result['horizon']}: {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("benchmark", choices=sorted(BENCHMARKS))
    parser.add_argument("--steps", type=int, default=400, help="control steps per measurement")
    parser.add_argument("--horizons", type=int, nargs="+", default=[8, 4, 2, 1])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    results = run(BENCHMARKS[options.benchmark], options)
    for result in results:
        if result["horizon"] == "every step":
            show(result)
    if len(options.horizons) > 1 and 1 in options.processes:
        results.append({"split": split(results)})
        print(results[-1])
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
