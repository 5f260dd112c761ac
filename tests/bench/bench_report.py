"""How long the report takes to build from many rows, and to show its first content.

    PYTHONPATH=.:platform python tests/bench/bench_report.py [--rows 1000 100000] [--json PATH]
    PYTHONPATH=.:platform python tests/bench/bench_report.py --rows 1000 --files 100

The store holds whole SimplerEnv evaluations of 96 trials per cell, compacted as finished
cells are, and the last cell's rows loose. Beside them lie each run's training metrics: 50,000
steps in 2,000 files, one for each 30 s of 17 hours. `reread_s` is what the live app's next look
takes, when nothing is new. `loose` repeats the reading with every row in a file
of its own, as a study is that never finished a cell. First content is Chromium's
first-contentful-paint of index.html over HTTP, where it is installed. All are medians of five.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import http.server
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from vla_platform.rows import ROWS, Cell, encode, encode_row

from dashboards.archive import open_archive
from dashboards.report.site import build
from dashboards.rows import read_cells
from dashboards.runs import Known, read_study
from envs.benchmarks import benchmark
from tests.bench.measured import write
from tests.dashboards.builder import Builder, made, share
from tests.dashboards.chromium import BINARY, chromium
from vlm4vla.study import TABLES

SIMPLER = benchmark("simpler")
STEPS_PER_FILE = 25
TURNS = 5


def fill(folder: Path, rows: int, states: int = 24, files: int = 2_000) -> int:
    """Cells of the study's runs until there are this many rows; returns the number.

    files: of training metrics, per run.
    """
    builder = Builder(str(folder))
    runs = [entry.run for entry in TABLES["table2"].entries() if entry.column == "simpler"]
    runs += [entry.run for entry in TABLES["table3"].entries() if entry.column == "simpler"]
    done = 0
    for run in dict.fromkeys(runs):
        name = builder.train(run, metrics=files * STEPS_PER_FILE, files=files)
        for step in SIMPLER.recipe.checkpoints:
            for horizon in SIMPLER.horizons:
                if done >= rows:
                    return done
                cell = builder.cell(name, step, horizon, "simpler")
                if done + 4 * states < rows:
                    done += compacted(builder, cell, states)
                else:
                    outcomes = dict.fromkeys(SIMPLER.tasks, share(0.5, states))
                    done += len(builder.play(cell, outcomes, compact=False))
    return done


def compacted(builder: Builder, cell: Cell, states: int) -> int:
    """A finished cell, all its rows at once; returns their number."""
    places = [(task, state) for task in SIMPLER.tasks for state in range(states)]
    usual = made(cell, SIMPLER.tasks[0], 0, 1).flat()
    columns = {name: [value] * len(places) for name, value in usual.items()}
    columns["task"] = [task for task, _ in places]
    columns["initial_state"] = columns["seed"] = [state for _, state in places]
    columns["success"] = [state % 2 == 0 for _, state in places]
    columns["completed"] = [int(won) for won in columns["success"]]
    columns["key"] = [hashlib.sha256(f"{cell.id}{place}".encode()).hexdigest() for place in places]
    data = encode(pa.table(columns, schema=ROWS))
    builder.ledger.describe(cell)
    name = hashlib.sha256(data).hexdigest()[:32]
    builder.store.put(f"cells/{cell.id}/cell-{name}.parquet", data)
    return len(places)


def fill_loose(folder: Path, rows: int) -> None:
    builder = Builder(str(folder))
    cell = builder.cell("loose", 50_000, 4, "simpler")
    builder.ledger.describe(cell)
    target = folder / "cells" / cell.id / "episodes"
    target.mkdir(parents=True)
    for state in range(rows):
        row = made(cell, SIMPLER.tasks[state % 4], state, state % 2)
        (target / f"{row.episode.key}.parquet").write_bytes(encode_row(row))


def first_content(folder: Path) -> float | None:
    """Milliseconds, or None without Chromium."""
    if not BINARY:
        return None

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        times = []
        with chromium() as tab:
            for _ in range(TURNS):
                tab.open(f"http://127.0.0.1:{server.server_port}/index.html")
                paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
                tab.wait(f"{paint} > 0")
                times.append(tab.value(paint))
        server.shutdown()
    return statistics.median(times)


def measure(folder: Path, rows: int, files: int) -> dict[str, Any]:
    # Protocols have 96 trials per cell; more states reach 100k rows without 1,042 cells' worth
    # of runs that no table has.
    store, sites = folder / "store", [folder / f"site{turn}" for turn in range(TURNS)]
    held = fill(store, rows, states=max(24, rows // 1600), files=files)
    turns = sorted((built(store, site) for site in sites), key=lambda turn: turn["build_s"])
    spread = [round(turns[turn]["build_s"], 2) for turn in (0, -1)]
    middle = turns[TURNS // 2] | {"build_spread_s": spread, "reread_s": reread(store)}
    return {"rows": held, **middle, "first_content_ms": first_content(sites[-1])}


def built(store: Path, site: Path) -> dict[str, Any]:
    began, spent = time.perf_counter(), time.process_time()
    report = build(open_archive(str(store)), site)
    took, cpu = time.perf_counter() - began, time.process_time() - spent
    parts = {f"{part}_s": seconds for part, seconds in report.seconds.items()}
    return {"cells": report.cells, "build_s": took, "build_cpu_s": cpu, **parts}


def reread(store: Path) -> float:
    archive, known = open_archive(str(store)), Known()
    read_study(archive, known)
    times = []
    for _ in range(TURNS):
        began = time.perf_counter()
        read_study(archive, known)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def loose(folder: Path, rows: int) -> dict[str, float | int]:
    fill_loose(folder, rows)
    began = time.perf_counter()
    (cell,) = read_cells(open_archive(str(folder)))
    return {"loose": cell.trials, "loose_read_s": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--loose", type=int, default=0, help="also this many rows, all loose")
    parser.add_argument("--files", type=int, default=2_000, help="of training metrics, per run")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: dict[str, Any] = {"sizes": []}
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            found["sizes"].append(measure(Path(folder), rows, args.files))
            print(json.dumps(found["sizes"][-1]), flush=True)
    if args.loose:
        with tempfile.TemporaryDirectory() as folder:
            found |= loose(Path(folder), args.loose)
    print(json.dumps(found, indent=1))
    if args.json:
        write(args.json, found)


if __name__ == "__main__":
    main()
