"""Past this machine: the paper's study on 8 to 256 GPUs, simulated, and the model beside what ran.

    make bench-scale                                  everything, to scale.json beside this file
    PYTHONPATH=.:platform python -m tests.bench.bench_scale [table | peer | check]

`docs/scale.md` says what is modelled and how to read it; every cost is a field of `Costs`.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from envs.benchmarks import benchmark
from envs.libero import STEP_LIMITS
from tests.bench.measured import write
from tests.bench.scale_check import checks, costs_here
from tests.bench.scale_model import Costs, Played, Pool, PoolSize, bounds, play
from tests.bench.scale_study import Known, Machine, Study, Work, draw_steps
from vlm4vla import cost, sizes
from vlm4vla.backbones import backbone
from vlm4vla.study import choose, trainings

HERE = Path(__file__).parent
GPUS, SIMULATORS = (8, 32, 256), (100, 1_000, 10_000)
NODE = 8
"""GPUs of a node: seven train and one answers, as `gpu_share` and `workers` divide them."""
WHAT_IF: dict[str, tuple[Machine, ...]] = {
    "batches of 8": tuple(Machine(n, 12 * n, n // NODE, 7, batch=8) for n in (8, 256)),
    "and looks of 100": tuple(
        Machine(n, 40 * n, n // NODE, 7, batch=8, look=100) for n in (8, 256)
    ),
    "and two replicas": tuple(
        Machine(n, 40 * n, n // NODE, 6, 2, batch=8, look=100) for n in (8, 256)
    ),
}
"""What to change where the table breaks, one after another."""
LONGEST_FIRST = "and the longest trainings first"
PEER_MINUTES = 18.0
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
STATES = 50
BASE: dict[str, float] = {
    **{"horizon": 4, "score": 0.5, "cores": 96, "slots": 8},
    **{"batch": 16, "batch_ms": 33, "slower": 1.0},
}
"""horizon: actions of a chunk. score: episodes that succeed, after Costs.won_share of the limit.
slots: simulators of a host. batch, batch_ms: observations of a call and what it takes the H100; the
peer's. slower: than simulators.json, steps and frames."""
CHANGES: tuple[dict[str, float], ...] = (
    *({"horizon": h} for h in (1, 2, 8, 16)),
    *({"score": s} for s in (0.0, 0.95)),
    *({"batch_ms": ms} for ms in (17, 66, 132)),
    *({"slower": s} for s in (0.5, 2.0, 4.0)),
    *({"cores": n} for n in (24, 48, 192)),
    *({"batch": 32, "batch_ms": 66}, {"batch": 8, "batch_ms": 33}, {"slots": 1}, {"slots": 2}),
    *({"horizon": 1, "slots": 1}, {"horizon": 1, "score": 0.95}, {"horizon": 1, "batch_ms": 17}),
    *({"horizon": 2, "batch_ms": 66}, {"slower": 2.0, "score": 0.0}),
)


def paper_study() -> list[Work]:
    """Trainings of all tables in their order, without the expert baselines."""
    entries = [entry for part in choose(None) for entry in part.entries()]
    printed: dict[str, list[float]] = {}
    for entry in entries:
        row = benchmark(entry.run.benchmark)
        whole = row.chain if row.chain > 1 else 100
        printed.setdefault(row.name, []).append(entry.printed / whole)
    works = []
    for run in trainings(entries).values():
        row, vlm = benchmark(run.benchmark), sizes.meta_model(backbone(run.backbone))
        head = sizes.meta_head(vlm, backbone(run.backbone))
        parameters = sizes.count(vlm.parameters()) + sizes.count(head.parameters())
        trained = sizes.optimised(vlm, head, backbone(run.backbone), run.freeze)
        training = cost.FORWARD + cost.TO_INPUTS + cost.TO_WEIGHTS
        whole_s = cost.gpu_hours(replace(run, freeze=())) * 3600 / cost.samples(run)
        works.append(
            Work(
                row=row,
                gpu_s=cost.gpu_hours(run) * 3600,
                forward_s=whole_s * cost.FORWARD / training,
                policy_bytes=Costs.weight_bytes * parameters,
                state_bytes=Costs.state_bytes * trained,
                score=float(np.mean(printed[row.name])),
            )
        )
    return works


def table(works: list[Work], costs: Costs) -> dict[str, Any]:
    """Every size, then what changes help."""
    known: Known = {}
    whole = sum(cost.episodes(work.row) for work in works)

    def run(machine: Machine) -> dict[str, Any]:
        found = Study(works, machine, costs, known).run()
        assert found["episodes"] == whole, "every episode ends once"
        return _shown(found)

    print(HEADING)
    found = {"sizes": [run(Machine(n, s, n // NODE, NODE - 1)) for n in GPUS for s in SIMULATORS]}
    for name, machines in WHAT_IF.items():
        print(name)
        found[name] = [run(machine) for machine in machines]
    print(LONGEST_FIRST)
    works = sorted(works, key=lambda work: -work.gpu_s)
    found[LONGEST_FIRST] = [run(machines[-1])]
    return found


HEADING = (
    " GPUs   sims   days GPU-hours train% infer% sims% driver% (peak)   req/s PUT/s  GET/s "
    "(peaks)  $req   TB   $/month  hours of all runs spent on"
)


def _shown(found: dict[str, Any]) -> dict[str, Any]:
    spent = ", ".join(f"{name} {hours:,.0f}" for name, hours in found["spent_hours"].items())
    print(
        f"{found['gpus']:>5}{found['simulators']:>7,}{found['wall_days']:>7.1f}"
        f"{found['gpu_hours']:>10,.0f}{100 * found['training_use']:>7.0f}"
        f"{100 * found['inference_use']:>7.0f}{100 * found['simulator_use']:>6.1f}"
        f"{100 * found['driver_share']:>8.2f} ({100 * found['driver_share_peak']:.1f})"
        f"{found['requests_per_s']:>9.1f}{found['puts_per_s_peak']:>6.0f}"
        f"{found['gets_per_s_peak']:>7.0f}{found['request_dollars']:>14,.0f}"
        f"{found['stored_tb']:>6,.0f}{found['month_dollars']:>9,.0f}  {spent}",
        flush=True,
    )
    return found


def libero(costs: Costs, given: Mapping[str, float], seed: int = 0) -> tuple[Played, str]:
    """2,000 episodes in one pool, and which part alone would take longest."""
    rng, simulator = np.random.default_rng(seed), costs.simulators["libero"]
    simulator = replace(
        simulator,
        step_s=simulator.step_s * given["slower"],
        frame_s=simulator.frame_s * given["slower"],
    )
    rows = sorted(map(benchmark, SUITES), key=lambda row: -STEP_LIMITS[row.name])
    plays = [
        play(simulator, draw_steps(row, given["score"], costs, rng), int(given["horizon"]))
        for row in rows
        for _ in range(len(row.tasks) * STATES)
    ]
    size = PoolSize(
        int(given["cores"]), int(given["slots"]), 1, int(given["batch"]), given["batch_ms"] / 1e3
    )
    found = bounds(plays, size, costs)
    played = Pool(plays, size, costs).run()
    played.wall_s += costs.start_s
    return played, max(found, key=lambda name: found[name])


def peer(costs: Costs) -> list[dict[str, Any]]:
    """Minutes of 2,000 LIBERO episodes on one H100, and with one or two things changed."""
    results = []
    for change in ({}, *CHANGES):
        played, slowest = libero(costs, {**BASE, **change})
        minutes = played.wall_s / 60
        words = ", ".join(f"{name} {value:g}" for name, value in change.items()) or f"base {BASE}"
        print(f"{minutes:6.1f} min ({PEER_MINUTES / minutes:.1f}x, {slowest}): {words}", flush=True)
        results.append({**change, "minutes": minutes, "slowest": slowest, "chunks": played.chunks})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", choices=("table", "peer", "check"))
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    costs, began, found = costs_here(HERE), time.process_time(), {}
    if options.part in ("table", None):
        found["study"] = table(paper_study(), costs)
    if options.part in ("peer", None):
        found["peer"] = peer(costs)
    if options.part in ("check", None):
        found["check"] = checks(HERE)
    found |= {"costs": dataclasses.asdict(costs), "took_cpu_s": round(time.process_time() - began)}
    if options.json:
        write(options.json, found)


if __name__ == "__main__":
    main()
