"""What each page of the report shows, gathered for its template."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dashboards.cells import BROKEN, COMPLETE, UNFINISHED, Cell, last_line, span
from dashboards.report.entries import TableView
from dashboards.report.figures import how
from dashboards.report.scores import OWN, RunScore, conditions, outcomes
from dashboards.runs import Run, Study
from vlm4vla.analysis import Estimate, across_trainings, wilson
from vlm4vla.compare import MEASURED, MISSING, REDUCED, chained, protocol, scaled, unit
from vlm4vla.selection import stratified

VIDEOS = 12
"""Shown per run: the first failures and successes."""
MODES = {OWN: "own instruction", "wrong_word": "wrong word in the instruction"}


def tile(value: object, text: str) -> dict[str, object]:
    return {"value": value, "text": text}


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def index_tiles(study: Study) -> list[dict[str, object]]:
    cells = study.cells
    states = [cell.status for cell in cells]
    played = sum(cell.trials for cell in cells)
    found = [tile(len(study.runs), "runs"), tile(f"{played:,}", "episodes")]
    found.append(tile(f"{states.count('complete')} / {len(cells)}", "cells complete"))
    found.append(tile(duration(sum(run.seconds for run in study.runs)), "of training"))
    wall = sum(task.wall_s for cell in cells for task in cell.tasks)
    return [*found, tile(duration(wall), "of simulation, all workers")]


def board(scores: Sequence[RunScore]) -> list[dict[str, Any]]:
    """The leaderboard: results first, best on top, by benchmark."""
    lines = [
        {
            "run": one.run,
            "how": how(one.run),
            "score": one.score,
            "untrained": one.untrained,
            "wrong_word": one.wrong_word,
            "top": unit(one.run.benchmark),
            "decimals": decimals(one.run),
        }
        for one in scores
    ]
    return sorted(
        lines, key=lambda x: (x["run"].benchmark, -(x["score"].best or Estimate(-1, 0, 0)).value)
    )


def seeds(scores: Sequence[RunScore]) -> list[dict[str, Any]]:
    """Runs that differ in their training seed alone: the mean success of their winners.

    The interval is over seeds and trials (`across_trainings`). Runs without a result, and such as
    were evaluated under other conditions, are not among them.
    """
    groups: dict[str, list[RunScore]] = defaultdict(list)
    for one in scores:
        if one.score.status in (MEASURED, REDUCED):
            config = {k: v for k, v in one.run.config.items() if k != "seed"}
            groups[repr((sorted(config.items()), one.conditions))].append(one)
    found = [sorted(group, key=_seed) for group in groups.values() if len(group) > 1]
    return [
        {
            "run": group[0].run,
            "how": how(group[0].run),
            "seeds": len(group),
            "mean": _mean(group),
            "top": unit(group[0].run.benchmark),
            "decimals": decimals(group[0].run),
        }
        for group in found
    ]


def _seed(one: RunScore) -> int:
    return int(one.run.config.get("seed", 0))


def _mean(group: Sequence[RunScore]) -> Estimate:
    row = protocol(group[0].run.benchmark)
    assert row is not None
    outcomes = [
        [won for task in one.winner.values() for state, won in task.items() if state < row.trials]
        for one in group
    ]
    return scaled(across_trainings(outcomes), unit(group[0].run.benchmark))


def decimals(run: Run) -> int:
    return 3 if chained(run.benchmark) else 1


# A run's page


def run_tiles(run: Run) -> list[dict[str, object]]:
    wall = sum(task.wall_s for cell in run.cells for task in cell.tasks)
    retried = sum(sum(cell.table["error_count"].to_pylist()) for cell in run.cells)
    episodes = sum(cell.trials for cell in run.cells)
    return [
        tile(f"{run.trained:,} / {run.steps:,}" if run.steps else run.trained, "steps trained"),
        tile(duration(run.seconds), "of training"),
        tile(f"{episodes:,}", "episodes"),
        tile(duration(wall), "of simulation, all workers"),
        tile(retried, "infrastructure errors retried"),
        tile(_when(run), "from first to last episode"),
    ]


def _when(run: Run) -> str:
    spans = [found for cell in run.cells if (found := span(cell))]
    if not spans:
        return "–"
    return duration(max(end for _, end in spans) - min(begin for begin, _ in spans))


def grids(run: Run) -> list[dict[str, Any]]:
    """A checkpoint × horizon grid per instruction mode and set of conditions."""
    found: dict[tuple[Any, ...], dict[tuple[int, int], Any]] = defaultdict(dict)
    for cell in run.cells:
        key = (cell.fields["instruction_mode"], *conditions(cell))
        found[key][(run.step_of(cell), cell.fields["horizon"])] = _shown(cell)
    return [
        {
            "mode": MODES.get(key[0], key[0]),
            "conditions": "environment {:.8}, {} profile, {}, protocol {}, schema {}".format(
                *key[1:]
            ),
            "steps": sorted({step for step, _ in cells}),
            "horizons": sorted({horizon for _, horizon in cells}, reverse=True),
            "cells": cells,
        }
        for key, cells in sorted(found.items(), key=lambda item: (item[0][0] != OWN, str(item[0])))
    ]


def _shown(cell: Cell) -> dict[str, Any]:
    """A cell's value in the paper's unit: the mean over tasks, as the paper averages."""
    name = str(cell.fields["benchmark"])
    value = scaled(stratified(outcomes(cell)), unit(name)) if cell.trials else None
    return {"cell": cell, "value": value, "decimals": 2 if chained(name) else 0}


@dataclass(frozen=True)
class TaskRate:
    rate: Estimate
    successes: int
    trials: int


def tasks(run: Run, one: RunScore) -> dict[str, Any] | None:
    """Success per task of the reported checkpoint and horizon, own beside other instructions."""
    place = one.score.place
    cells = [c for c in run.cells if c.trials and c.status != BROKEN]
    if place:
        cells = [c for c in cells if (run.step_of(c), c.fields["horizon"]) == place]
    elif cells:
        last = max((run.step_of(c), c.fields["horizon"]) for c in cells)
        cells = [c for c in cells if (run.step_of(c), c.fields["horizon"]) == last]
    if not cells:
        return None
    cells.sort(key=lambda c: (c.fields["instruction_mode"] != OWN, c.id))
    names = sorted({task.name for cell in cells for task in cell.tasks})
    by_cell = [{task.name: task for task in cell.tasks} for cell in cells]
    rows = [{"task": n, "found": [_rate(tasks.get(n)) for tasks in by_cell]} for n in names]
    columns = [MODES.get(str(c.fields["instruction_mode"]), "?") for c in cells]
    return {"columns": columns, "rows": rows}


def _rate(task: Any) -> TaskRate | None:
    if task is None or not task.trials:
        return None
    ends = (100 * end for end in wilson(task.successes, task.trials, task.states))
    rate = Estimate(100 * task.successes / task.trials, *ends)
    return TaskRate(rate, task.successes, task.trials)


def videos(run: Run, stored: Mapping[str, str]) -> list[dict[str, Any]]:
    """Failures and successes in turn; each says what it shows. key: in the store."""
    found: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    if not stored:
        return []
    for cell in run.cells:
        names = ("key", "task", "initial_state", "success")
        for key, task, state, success in zip(
            *(cell.table[name].to_pylist() for name in names), strict=True
        ):
            if key in stored:
                mode = MODES.get(str(cell.fields["instruction_mode"]), "")
                video = {"key": stored[key], "src": f"../videos/{key}.mp4", "task": task}
                found[success].append({**video, "state": state, "success": success, "mode": mode})
    half = VIDEOS // 2
    failures, wins = found[False], found[True]
    return failures[: max(half, VIDEOS - len(wins))] + wins[: max(half, VIDEOS - len(failures))]


# What is wrong


def problems(study: Study, scores: Sequence[RunScore], views: Sequence[TableView]) -> list[Any]:
    """Parts of the page of problems: title, hint, columns, lines."""
    cells = study.cells
    broken = [(p.key, p.reason) for cell in cells for p in cell.problems]
    broken += [(p.key, p.reason) for run in study.runs for p in run.problems]
    failures = [
        (f.task, f.initial_state, f.cause, f.message, cell.id)
        for cell in cells
        for f in cell.failures
        if not f.finished
    ]
    untrained = [
        (r.id, r.name, r.benchmark, r.status, last_line(r.error)) for r in study.runs if r.error
    ]
    retried = [
        (f.task, f.initial_state, f.cause, f.message, cell.id)
        for cell in cells
        for f in cell.failures
        if f.finished
    ]
    unfinished = [
        (c.id, c.fields.get("benchmark"), c.fields.get("instruction_mode"), c.trials, c.loose)
        for c in cells
        if c.status == UNFINISHED
    ]
    unscored = [
        (stage.id, stage.backbone, "", stage.status, "this auxiliary stage has no scores")
        for stage in study.stages
        if stage.status != COMPLETE
    ]
    waiting = [
        (one.run.id, one.run.name, one.run.benchmark, one.score.status, one.score.note)
        for one in scores
        if one.score.status in (MISSING, UNFINISHED)
    ]
    absent = [
        (view.printed.title, line.row, line.column, line.score.note)
        for view in views
        for line in view.lines
        if line.paper is not None and not line.part
        if line.score.status == MISSING and line.run not in _ids(study)
    ]
    return [
        _part("Broken", _BROKEN, ("stored object", "reason"), broken),
        _part("Failed trainings", _UNTRAINED, _RUN, untrained),
        _part("Failed episodes", _FAILED, _FAILURE, failures),
        _part("Unfinished cells", _UNFINISHED, _CELL, unfinished),
        _part("Runs without a result", _WAITING, _RUN, [*waiting, *unscored]),
        _part("Errors that were retried", _RETRIED, _FAILURE, retried, counts=False),
        _part("The paper's numbers not measured here", _ABSENT, _NUMBER, absent, counts=False),
    ]


_FAILURE = ("task", "state", "cause", "message", "cell")
_CELL = ("cell", "benchmark", "instructions", "episodes", "not compacted")
_RUN = ("run", "backbone", "benchmark", "status", "why")
_NUMBER = ("table", "row", "column", "why")
_BROKEN = (
    "Stored objects that cannot be trusted. Their cells have no score until they are moved away"
    " and played again."
)
_UNTRAINED = "Their last error; its trace is on the run's page. The same command tries them again."
_FAILED = "Episodes of which only infrastructure errors are known: they have no outcome."
_UNFINISHED = "Episodes were asked for that are not there, or the study still runs."
_WAITING = "Trainings that have not led to a score."
_RETRIED = "These episodes finished after all; the errors count as nothing."
_ABSENT = "Run the study's tables to fill them."


def _ids(study: Study) -> set[str]:
    return {run.id for run in study.runs}


def _part(
    title: str,
    hint: str,
    columns: Sequence[str],
    lines: Sequence[Sequence[object]],
    counts: bool = True,
) -> dict[str, Any]:
    """counts: whether its lines are problems of this store, or only news."""
    return {"title": title, "hint": hint, "columns": columns, "lines": lines, "counts": counts}
