"""Trainings as stored: their configuration, checkpoints, curves and cost, with their cells."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dashboards.archive import Archive, Stamp
from dashboards.cells import BROKEN, UNFINISHED, Cell, Problem
from dashboards.curves import Curve, KnownCurves, read_curves
from dashboards.rows import KnownCells, read_cells
from dashboards.stages import Stage, read_stage

LONGEST_CURVE = 400
"""Points kept of a curve: more than a screen shows, and a page stays small."""


@dataclass(frozen=True, order=True)
class Similarity:
    """How alike a layer of a checkpoint and of a reference model are: linear CKA, 1 for equal.

    reference: "vlm" for the backbone as published, else an auxiliary stage's id. floor: what a
    random model reaches.
    """

    reference: str
    step: int
    part: str
    layer: int
    value: float
    floor: float


@dataclass(frozen=True)
class Run:
    """A training. config: the resolved run, {} when no checkpoint describes it.

    checkpoints: weights digest by step. metrics: rows of the training by step, whatever
    columns it wrote. seconds: of wall clock between the first and the last of them.
    similarity: by reference, step, part and layer; () where it was not measured.
    error: of its training's last failure, with its trace; "" once it is trained to its end.
    """

    id: str
    config: Mapping[str, Any]
    checkpoints: Mapping[int, str]
    metrics: tuple[Mapping[str, float], ...]
    cells: tuple[Cell, ...]
    problems: tuple[Problem, ...] = ()
    similarity: tuple[Similarity, ...] = ()
    error: str = ""

    @property
    def name(self) -> str:
        return str(self.config.get("backbone", self.id))

    @property
    def benchmark(self) -> str:
        return str(self.config.get("benchmark", ""))

    @property
    def steps(self) -> int | None:
        """Steps it was to be trained for."""
        return self.config.get("steps")

    @property
    def trained(self) -> int:
        """Steps of its last complete checkpoint."""
        return max(self.checkpoints, default=0)

    @property
    def seconds(self) -> float:
        times = [row["time"] for row in self.metrics if "time" in row]
        return max(times) - min(times) if times else 0.0

    @property
    def status(self) -> str:
        """Worst of its own and its cells' states."""
        states = {cell.status for cell in self.cells}
        if self.problems or BROKEN in states:
            return BROKEN
        short = self.steps is None or self.trained < self.steps
        return UNFINISHED if short or not self.cells or UNFINISHED in states else "complete"

    def step_of(self, cell: Cell) -> int:
        return next(s for s, digest in self.checkpoints.items() if digest == cell.fields["policy"])


@dataclass(frozen=True)
class Study:
    """Everything in a store that people look at.

    strangers: cells of policies that no training here made (remote ones, deleted ones).
    videos: keys by episode key. fingerprints: environment texts by hash.
    """

    url: str
    runs: tuple[Run, ...]
    strangers: tuple[Cell, ...]
    videos: Mapping[str, str]
    fingerprints: Mapping[str, Mapping[str, str]]
    problems: tuple[Problem, ...] = ()
    stages: tuple[Stage, ...] = ()

    @property
    def cells(self) -> tuple[Cell, ...]:
        return (*(cell for run in self.runs for cell in run.cells), *self.strangers)


@dataclass
class _Parts:
    """Keys of one run under policies/, metrics/ and similarity/."""

    complete: list[str] = field(default_factory=list)
    described: list[str] = field(default_factory=list)
    metrics: dict[str, Stamp] = field(default_factory=dict)
    similarity: list[str] = field(default_factory=list)
    stage: str = ""
    error: str = ""


@dataclass
class Known:
    """What was read of a store before: the parts of it that are many small files."""

    cells: KnownCells = field(default_factory=dict)
    curves: KnownCurves = field(default_factory=dict)


def read_study(archive: Archive, known: Known | None = None) -> Study:
    """Read the whole store, rows included; of what is in `known` only what is new."""
    known = known or Known()
    cells = read_cells(archive, known.cells)
    by_policy: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        by_policy[str(cell.fields.get("policy", ""))].append(cell)

    def stage_of(item: tuple[str, _Parts]) -> Stage | None:
        return read_stage(archive, item[0], item[1].stage, item[1].described)

    def run_of(item: tuple[str, _Parts]) -> Run:
        return _run(archive, *item, known.curves[item[0]], by_policy)

    found = _keys(archive)
    stages = [stage for stage in archive.map(stage_of, sorted(found.items())) if stage]
    for stage in stages:
        del found[stage.id]
    read_curves(archive, {name: parts.metrics for name, parts in found.items()}, known.curves)
    runs = list(archive.map(run_of, sorted(found.items())))
    mine = {cell.id for run in runs for cell in run.cells}
    return Study(
        archive.url,
        tuple(sorted(runs, key=lambda run: (run.benchmark, run.name, run.id))),
        tuple(cell for cell in cells if cell.id not in mine),
        {_stem(key): key for key in archive.list("videos") if key.endswith(".mp4")},
        {_stem(key): _json(archive, key) for key in archive.list("fingerprints")},
        stages=tuple(stages),
    )


def _keys(archive: Archive) -> dict[str, _Parts]:
    found: dict[str, _Parts] = defaultdict(_Parts)
    for key in archive.list("policies"):
        parts = found[key.split("/")[1]]
        if key.endswith("/complete.json"):
            parts.complete.append(key)
        elif key.endswith("/policy.json"):
            parts.described.append(key)
        elif key.endswith("/stage.json"):
            parts.stage = key
    for key, stamp in archive.stamps("metrics").items():
        if key.endswith(".parquet"):
            found[key.split("/")[1]].metrics[key] = stamp
        elif key.endswith("/error.json"):
            found[key.split("/")[1]].error = key
    for key in archive.list("similarity"):
        found[key.split("/")[1]].similarity.append(key)
    return found


def _run(
    archive: Archive,
    name: str,
    parts: _Parts,
    curve: Curve,
    by_policy: Mapping[str, Sequence[Cell]],
) -> Run:
    problems = list(curve.problems)
    config = _config(archive, name, parts, problems)
    checkpoints: dict[int, str] = {}
    for key in parts.complete:
        try:
            digest = json.loads(archive.get(key))["digest"]
            checkpoints[int(key.split("/")[2].removeprefix("step-"))] = digest
        except (KeyError, TypeError, ValueError):
            problems.append(Problem(key, "does not mark a checkpoint"))
    cells = [
        cell for digest in dict.fromkeys(checkpoints.values()) for cell in by_policy.get(digest, ())
    ]
    metrics = tuple(curve.rows.values())
    similarity = tuple(sorted(_similarity(archive, parts.similarity, problems)))
    made = Run(name, config, checkpoints, metrics, tuple(cells), tuple(problems), similarity)
    if parts.error and (made.steps is None or made.trained < made.steps):
        return replace(made, error=_error(archive, parts.error))
    return made


def _error(archive: Archive, key: str) -> str:
    try:
        return str(json.loads(archive.get(key))["text"]).strip()
    except (KeyError, TypeError, ValueError):
        return f"{key} does not hold an error"


def _config(archive: Archive, name: str, parts: _Parts, problems: list[Problem]) -> dict[str, Any]:
    """The resolved run of the newest checkpoint; all of a run's say the same."""
    for key in reversed(parts.described):
        try:
            return dict(json.loads(archive.get(key))["run"])
        except (KeyError, TypeError, ValueError):
            problems.append(Problem(key, "does not describe a policy"))
    return {}


def _similarity(
    archive: Archive, keys: Sequence[str], problems: list[Problem]
) -> Iterator[Similarity]:
    for key in keys:
        try:
            _, _, reference, name = key.split("/")
            step = int(name.removeprefix("step-").removesuffix(".parquet"))
            rows = pq.read_table(io.BytesIO(archive.get(key))).to_pylist()
            yield from [
                Similarity(
                    *(reference, step, row["part"], row["layer"]),
                    *(float(row["similarity"]), float(row["floor"])),
                )
                for row in rows
            ]
        except (pa.ArrowException, KeyError, OSError, TypeError, ValueError):
            problems.append(Problem(key, "does not hold similarities"))


def thin(points: Sequence[Any]) -> list[Any]:
    """At most LONGEST_CURVE of the points, the last among them."""
    stride = -(-len(points) // LONGEST_CURVE) or 1
    return list(points[::-1][::stride][::-1])


def _stem(key: str) -> str:
    return key.rpartition("/")[2].rpartition(".")[0]


def _json(archive: Archive, key: str) -> dict[str, str]:
    try:
        return dict(json.loads(archive.get(key)))
    except (TypeError, ValueError):
        return {"unreadable": key}
