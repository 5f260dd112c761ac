"""The model beside what ran on this machine, at sizes and horizons that it was not fitted to.

Each group is fitted on its first line alone: one number, said in the line. What was measured on a
busy machine is marked so, because the model knows nothing of the others that used it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scipy.optimize import brentq

from envs.benchmarks import benchmark
from tests.bench.control_plane_simulator import CHUNK_S, CHUNKS
from tests.bench.scale_model import Costs, Play, Pool, PoolSize, Simulator, play
from tests.bench.scale_study import PRESET, SAMPLES, episodes, look

LOCAL_STORE = {"request_s": 0.002, "puts_per_s": 1e9}
"""A folder on this machine's disk: 2 ms a commit (`bench_ledger`, beside other work)."""
SWEEP = {
    "tiny-paligemma-1": (24.0, 16.34),
    "tiny-kosmos-2": (27.0, 17.36),
    "tiny-qwen2.5vl-3b": (29.0, 16.75),
    "tiny-qwen3vl-30b-a3b": (54.0, 15.49),
}
"""Backbone -> seconds of its 600 tabletop episodes in a pool that ran already, and mean chunks of
an episode: progress lines and rows of `make sweep`, of three and of six backbones, busy machine."""
SWEEP_FIRST = {"tiny-paligemma-2": (35.0, 16.31), "tiny-qwen3vl-2b": (39.0, 15.97)}
"""The same of a sweep's first backbone, for which the pool was started."""


@dataclass(frozen=True)
class Line:
    """predicted and measured in `unit`; fitted: the line that the group's one number comes from."""

    what: str
    unit: str
    predicted: float
    measured: float
    fitted: bool = False

    def __str__(self) -> str:
        how = "fitted" if self.fitted else f"{self.predicted / self.measured:.2f}"
        return f"{self.what:<58}{self.predicted:>9.1f}{self.measured:>9.1f} {self.unit:<9} {how}"


def checks(folder: Path) -> list[dict[str, Any]]:
    """Every comparison that the benchmarks' JSON files in `folder` allow, printed."""
    lines = [*looks(), *horizons(folder), *sweep(folder)]
    stored = folder / "rollouts.json"
    if stored.exists():
        lines += rollouts(json.loads(stored.read_text()))
    else:
        print("rollouts.json is not there: `make bench-rollouts` measures the pool itself")
    print(f"{'':<58}predicted measured           predicted/measured")
    for line in lines:
        print(line)
    return [vars(line) for line in lines]


def looks(count: int = 10) -> Iterator[Line]:
    """The study's short cut beside the exact model: the mean of some looks for all of a kind."""
    costs = Costs()
    for name, score in (("calvin", 0.72), ("libero_10", 0.47), ("simpler", 0.46)):
        row = benchmark(name)
        for simulators in (25, 90):
            size = PoolSize(simulators, PRESET.slots, 1, PRESET.batch, 0.28)
            walls = [
                Pool(episodes(row, score, 30, costs, seed), size, costs).run().wall_s
                for seed in range(SAMPLES, SAMPLES + count)
            ]
            mean = look(row, score, 30, size, costs)[0].wall_s
            what = f"{count} other looks of {name} on {simulators} simulators"
            yield Line(what, "s", count * mean, sum(walls))


def horizons(folder: Path) -> Iterator[Line]:
    """Processes alone and in pairs, rendered when somebody looks: steps per core-second."""
    stored = json.loads((folder / "simulators.json").read_text())
    for name, simulator in Costs().simulators.items():
        found = next(value for key, value in stored.items() if key.startswith(name))
        steps = found["steps"]
        rate = lambda s, row, n=steps: n / _core_s(play(s, n, row["horizon"]))  # noqa: E731
        for processes, what in ((1, "one process"), (2, "two processes")):
            rows = [r for r in found["rows"] if r["horizon"] and r["processes"] == processes]
            yield from _by_factor(simulator, rows, rate, "steps_per_cpu_s", f"{name}, {what}")


def _core_s(one: Play) -> float:
    return one.chunks * one.chunk_s


def _by_factor(
    simulator: Simulator,
    rows: list[dict[str, Any]],
    rate: Callable[[Simulator, dict[str, Any]], float],
    measured: str,
    what: str,
) -> Iterator[Line]:
    """Rates by horizon; steps and frames are slower by one factor, fitted on the first row."""
    low, high = 0.1, 10.0
    factor = brentq(lambda f: rate(_slower(simulator, f), rows[0]) - rows[0][measured], low, high)
    for row in rows:
        predicted = rate(_slower(simulator, factor), row)
        words = f"{what}, horizon {row['horizon']}"
        yield Line(words, "steps/s", predicted, row[measured], row is rows[0])


def _slower(simulator: Simulator, factor: float) -> Simulator:
    return Simulator(simulator.step_s * factor, simulator.frame_s * factor, simulator.reset_s)


def sweep(folder: Path) -> Iterator[Line]:
    """Tabletop episodes of other backbones; fitted: core-seconds of a chunk beside its policy."""
    rows = json.loads((folder / "policy_overhead.json").read_text())
    sample_s = {row["name"]: row["policy_ms"] / 1e3 / rows["batch"] for row in rows["rows"]}

    def seconds(name: str, chunks: float, chunk_s: float) -> float:
        size = PoolSize(32, 16, 2, 16, 16 * sample_s[name], cores=2)
        whole, more = divmod(round(600 * chunks), 600)
        plays = [Play(whole + (n < more), chunk_s) for n in range(600)]
        return Pool(plays, size, replace(Costs(), driver_s=0.001, **LOCAL_STORE)).run().wall_s

    first, (measured, chunks) = next(iter(SWEEP.items()))
    chunk_s = brentq(lambda s: seconds(first, chunks, s) - measured, 1e-4, 2e-2, xtol=1e-5)
    for name, (measured, chunks) in SWEEP.items():
        what = f"sweep, 600 episodes of {name} (busy)"
        yield Line(what, "s", seconds(name, chunks, chunk_s), measured, name == first)
    (first, (measured, chunks)), *others = SWEEP_FIRST.items()
    start = measured - seconds(first, chunks, chunk_s)
    yield Line(f"sweep, pool started for {first} (busy)", "s", measured, measured, True)
    for name, (measured, chunks) in others:
        what = f"sweep, pool started for {name} (busy)"
        yield Line(what, "s", start + seconds(name, chunks, chunk_s), measured)


def rollouts(stored: dict[str, Any]) -> Iterator[Line]:
    """`make bench-rollouts`: the parts that it has measured."""
    if "environments" in stored.get("control_plane_figures", {}):
        yield from control_plane(stored["control_plane_figures"])
    if "horizons" in stored.get("libero_figures", {}):
        yield from libero(stored["libero_figures"])
    if "scheduling" in stored.get("ledger_figures", {}):
        yield from driver(stored["ledger_figures"]["scheduling"])


def control_plane(figures: dict[str, Any]) -> Iterator[Line]:
    """Chunks/s of waiting environments; fitted: core-seconds of a chunk at the fewest of them."""
    cores, rows = figures["machine"]["cores"], figures["environments"]
    chunk_s = rows[0]["cpu_ms_per_chunk"] / 1e3
    costs = replace(Costs(), driver_s=0.0, **LOCAL_STORE)
    for row in rows:
        count = round(row["environments"])
        size = PoolSize(count, -(-count // 2), 1, 64, 0.0, cores=cores)
        plays = [Play(CHUNKS, chunk_s, wait_s=CHUNK_S)] * round(row["episodes"])
        played = Pool(plays, size, costs).run()
        what = f"control plane, {count} environments"
        rate = played.chunks / played.wall_s
        yield Line(what, "chunks/s", rate, row["chunks_per_s"], row is rows[0])


def libero(figures: dict[str, Any]) -> Iterator[Line]:
    """The pool on real LIBERO by horizon, a constant policy."""
    cores, costs = figures["machine"]["cores"], replace(Costs(), **LOCAL_STORE)

    def rate(simulator: Simulator, row: dict[str, Any]) -> float:
        plays = [play(simulator, 200, row["horizon"])] * row["episodes_a_round"]
        wall = Pool(plays, PoolSize(cores, cores, 1, cores, 0.0), costs).run().wall_s
        return 200 * len(plays) / wall

    rows, simulator = figures["horizons"], costs.simulators["libero"]
    yield from _by_factor(simulator, rows, rate, "pool_steps_per_s", f"LIBERO, pool of {cores}")


def driver(rows: list[dict[str, Any]]) -> Iterator[Line]:
    """Core-milliseconds of the driver per episode: the model has one number for any size."""
    for row in rows:
        what = f"driver, {row['episodes']:,.0f} episodes"
        fitted = row is rows[0]
        yield Line(what, "ms", rows[0]["driver_cpu_ms"], row["driver_cpu_ms"], fitted)


def costs_here(folder: Path) -> Costs:
    """`Costs`, with what rollouts.json has measured in place of what is assumed."""
    stored = folder / "rollouts.json"
    figures = json.loads(stored.read_text()) if stored.exists() else {}
    rows = figures.get("ledger_figures", {}).get("scheduling")
    return replace(Costs(), driver_s=rows[-1]["driver_cpu_ms"] / 1e3) if rows else Costs()
