"""What the ledger costs per episode as a cell grows, and what it costs to start again.

    PYTHONPATH=.:platform python tests/bench/bench_ledger.py [--quick] [--json PATH]

A folder store. The cell is filled directly (one writer cannot wait for 100k flushes), then
`commit` is timed on fresh episodes at each size, in turn with a control: the same bytes put
into an empty store, because the disk is shared and its flushes vary. Then `read`, `compact`
and a restart (`missing` in a new ledger) on the whole cell.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vla_platform.ledger import Ledger
from vla_platform.rows import Cell, Episode, Row, encode_row
from vla_platform.store import open_store

PROBES = 200
"""Commits timed at each size."""


def cell_of(size: int) -> tuple[Cell, list[Episode]]:
    cell = Cell(policy=f"{size:064d}", benchmark="libero_10", horizon=4, fingerprint="f" * 64)
    return cell, [
        cell.episode(f"task {index % 10} with a name of usual length", index // 10, 7, "pick it up")
        for index in range(size)
    ]


def row_of(episode: Episode) -> Row:
    won = episode.initial_state % 2 == 0
    return Row(episode, won, won, won, 400, 100, 21.5, time.time(), uuid.uuid4().hex, "node-1")


def fill(folder: Path, cell: Cell, episodes: list[Episode]) -> None:
    target = folder / "cells" / cell.id / "episodes"
    target.mkdir(parents=True)
    for episode in episodes:
        (target / f"{episode.key}.parquet").write_bytes(encode_row(row_of(episode)))
    os.sync()  # or the commits timed next would pay for the filling


def timed(action: Callable[[], Any]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def commit_times(
    ledger: Ledger, episodes: list[Episode], control: Path
) -> tuple[list[float], list[float]]:
    """Seconds of each commit, and of the same bytes put beside it into an empty store."""
    empty = open_store(str(control / uuid.uuid4().hex))
    commits, controls = [], []
    for episode in episodes:
        row = row_of(episode)
        commits.append(timed(lambda row=row: ledger.commit(row)))
        data = encode_row(row)
        controls.append(timed(lambda data=data: empty.put_new(uuid.uuid4().hex, data)))
    return commits, controls


def measure(folder: Path, size: int) -> dict[str, float]:
    """Seconds, and median milliseconds of a commit; each on a ledger that knows nothing yet."""
    cell, episodes = cell_of(size)
    fill(folder, cell, episodes[PROBES:])
    ledger = Ledger(open_store(str(folder)))
    commits, controls = commit_times(ledger, episodes[:PROBES], folder / "control")
    fresh = lambda: Ledger(open_store(str(folder)))  # noqa: E731
    found = {
        "episodes": size,
        "commit_ms": 1e3 * statistics.median(commits),
        "control_ms": 1e3 * statistics.median(controls),
        "over_control_ms": 1e3
        * statistics.median(a - b for a, b in zip(commits, controls, strict=True)),
        "restart_loose_s": timed(lambda: fresh().missing(cell, episodes)),
        "compact_s": timed(lambda: fresh().compact(cell, episodes)),
        "restart_compacted_s": timed(lambda: fresh().missing(cell, episodes)),
        "prune_s": timed(lambda: fresh().prune(cell)),
        "read_pruned_s": timed(lambda: fresh().read(cell)),
        "summary_pruned_s": timed(lambda: fresh().summary(cell, episodes)),
    }
    assert ledger.summary(cell, episodes).trials == size
    return found


def bench(sizes: tuple[int, ...], disk: Path | None = None) -> dict[str, Any]:
    """A measurement per size, printed as a table."""
    with tempfile.TemporaryDirectory(dir=disk) as folder:
        table = [measure(Path(folder), size) for size in sizes]
    print(" ".join(f"{name:>20}" for name in table[0]))
    for row in table:
        print(" ".join(f"{value:>20,.3f}" for value in row.values()), flush=True)
    return {"sizes": table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 10k episodes only")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--folder", type=Path, help="on which disk; default the temporary folder")
    options = parser.parse_args()
    sizes = (1_000, 10_000) if options.quick else (1_000, 10_000, 100_000)
    table = bench(sizes, options.folder)["sizes"]
    if options.json:
        options.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
