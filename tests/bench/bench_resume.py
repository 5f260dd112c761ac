"""How long the command of a finished study takes to print its tables, as the study grows.

    PYTHONPATH=.:platform python -m tests.bench.bench_resume [--seeds 1 4 16] [--json PATH]

The store holds the laptop study, every run with its checkpoints and all episodes that could
choose or confirm a winner, as compacted cells. `command_s` is jobs/study.py from its start to its
end, most of it imports; `reading_s` what of it grows: the runs' scores. No peer keeps a study.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from vla_platform.artifacts import Checkpoint, complete_policy
from vla_platform.cluster import CLUSTERS
from vla_platform.ledger import Ledger
from vla_platform.rows import ROWS, Cell, Row, encode
from vla_platform.store import open_store
from vla_platform.study import Study
from vla_platform.study_cli import LAPTOP_STATES
from vla_platform.trained import steps, training_of

from envs.benchmarks import benchmark
from tests.bench.measured import write
from vlm4vla import laptop, science
from vlm4vla.run import Run
from vlm4vla.study import choose

ROOT = Path(__file__).parents[2]
CONFIRM = 20
TURNS = 5


def runs_of(seeds: int) -> list[Run]:
    """Of the laptop study, each once, in the study's order."""
    return list(
        dict.fromkeys(
            laptop.shrink(entry.run, entry.table)
            for seed in range(seeds)
            for part in choose(None)
            for entry in part.entries(seed)
            if entry.run is not None
        )
    )


def fill(study: Study, runs: Sequence[Run]) -> int:
    """Checkpoints and rows of the runs; the number of rows."""
    ledger, setting = Ledger(study.store), study.setting(laptop.BENCHMARK)
    rows = 0
    for run in runs:
        training = training_of(setting, run)
        for step in steps(setting, training):
            digest = hashlib.sha256(f"{training.id}/{step}".encode()).hexdigest()
            found = complete_policy(study.store, training.id, step, digest)
            for horizon in setting.benchmark.horizons:
                rows += _play(ledger, _cell(found, horizon, setting.fingerprint))
    return rows


def _cell(policy: Checkpoint, horizon: int, fingerprint: str) -> Cell:
    return Cell(policy.digest, laptop.BENCHMARK, horizon, fingerprint)


def _play(ledger: Ledger, cell: Cell) -> int:
    """A finished cell: two thirds of its episodes are won."""
    row = benchmark(laptop.BENCHMARK)
    fresh = row.confirmation_from or max(row.trials, LAPTOP_STATES)
    states = [*range(LAPTOP_STATES), *range(fresh, fresh + CONFIRM)]
    rows = [
        Row(
            episode=cell.episode(task, state, state, ""),
            **dict.fromkeys(("success", "success_any", "success_last"), state % 3 > 0),
            steps=40,
            replans=20,
            wall_s=0.5,
            finished_at=1e9,
            writer=f"{task}{state}",
        ).flat()
        for task in row.tasks
        for state in states
    ]
    data = encode(pa.Table.from_pylist(rows, ROWS))
    ledger.describe(cell)
    name = hashlib.sha256(data).hexdigest()[:32]
    ledger.store.put(f"cells/{cell.id}/cell-{name}.parquet", data)
    return len(rows)


def opened(folder: Path) -> Study:
    return Study(
        store=open_store(str(folder)),
        cluster=CLUSTERS["laptop"],
        science=science,
        say=print,
        states=LAPTOP_STATES,
        confirm=CONFIRM,
    )


def command_s(folder: Path, seeds: int) -> float:
    """Seconds of the whole command; AssertionError unless it had nothing to do."""
    began = time.perf_counter()
    command = [sys.executable, "jobs/study.py", "--store", str(folder), "--seeds", str(seeds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "not scored" not in done.stdout, done.stdout[-2000:]
    return time.perf_counter() - began


def reading_s(folder: Path, runs: Sequence[Run]) -> Iterator[float]:
    """Seconds that their scores take to read, by a process that has not read them before."""
    while True:
        study = opened(folder)
        study.setting(laptop.BENCHMARK)
        began = time.perf_counter()
        assert all(study.standing(run) for run in runs)
        yield time.perf_counter() - began


def measure(folder: Path, seeds: int) -> dict[str, Any]:
    runs = runs_of(seeds)
    rows = fill(opened(folder), runs)
    reading = sorted(islice(reading_s(folder, runs), TURNS))
    command = sorted(command_s(folder, seeds) for _ in range(TURNS))
    return {
        "runs": len(runs),
        "episodes": rows,
        "command_s": round(command[TURNS // 2], 2),
        "command_spread_s": [round(command[0], 2), round(command[-1], 2)],
        "reading_s": round(reading[TURNS // 2], 3),
        "reading_spread_s": [round(reading[0], 3), round(reading[-1], 3)],
        "ms_per_run": round(1000 * reading[TURNS // 2] / len(runs), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 4, 16], help="sizes")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = []
    for seeds in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(Path(folder), seeds))
            print(json.dumps(found[-1]), flush=True)
    if args.json:
        write(args.json, {"sizes": found})


if __name__ == "__main__":
    main()
