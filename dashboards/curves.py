"""Training metrics as stored: small files, thousands a run, each of which is read once."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from dashboards.archive import Archive, Stamp
from dashboards.cells import Problem

Row = dict[str, float]
Files = Mapping[str, Stamp]
"""Keys of a run's files, with their stamps: a training that starts again writes the steps after
its last checkpoint once more, and may do so under the same keys."""


@dataclass(frozen=True)
class Curve:
    """A run's rows by step, in order; of a step that was trained again, the later one.

    files: what they were read from. problems: files without metrics.
    """

    files: Files = field(default_factory=dict)
    rows: Mapping[int, Row] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


KnownCurves = dict[str, Curve]
"""Curves read before, by run."""


def read_curves(archive: Archive, runs: Mapping[str, Files], known: KnownCurves) -> None:
    """Bring `known` up to date with the files of the runs, reading all runs' new ones together."""
    for run, files in runs.items():
        if not known.setdefault(run, Curve()).files.items() <= files.items():
            known[run] = Curve()  # one was written again or removed
    fresh = [(run, key) for run, files in runs.items() for key in sorted(files)
             if key not in known[run].files]  # fmt: skip
    found: dict[str, list[list[Row] | Problem]] = defaultdict(list)
    read = archive.map(lambda item: _read(archive, item[1]), fresh)
    for (run, _), rows in zip(fresh, read, strict=True):
        found[run].append(rows)
    for run, new in found.items():
        known[run] = _with(known[run], runs[run], new)


def _with(curve: Curve, files: Files, new: Sequence[list[Row] | Problem]) -> Curve:
    rows, problems = dict(curve.rows), list(curve.problems)
    for found in new:
        if isinstance(found, Problem):
            problems.append(found)
        else:
            _merge(rows, found)
    return Curve(files, {step: rows[step] for step in sorted(rows)}, tuple(problems))


def _merge(rows: dict[int, Row], more: Sequence[Row]) -> None:
    for row in more:
        step = int(row["step"])
        if step not in rows or row["time"] >= rows[step]["time"]:
            rows[step] = row


def _read(archive: Archive, key: str) -> list[Row] | Problem:
    try:
        table = pq.ParquetFile(pa.BufferReader(archive.get(key))).read(use_threads=False)
        rows = [{k: v for k, v in row.items() if v is not None} for row in table.to_pylist()]
        if not all(math.isfinite(row["step"] + row["time"]) for row in rows):
            raise ValueError("steps and times are numbers")
    except (pa.ArrowException, KeyError, OSError, TypeError, ValueError):
        return Problem(key, "does not hold training metrics")
    return rows
