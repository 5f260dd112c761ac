"""Score tables as rows for scripts and as text for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vla_platform.cells import Summary, TaskScore
from vla_platform.evaluation import Result
from vla_platform.ledger import Ledger

Interval = Callable[[int, int, int], tuple[float, float]]
"""Successes, trials and the initial states that they are of -> the ends of the rate's interval."""
Row = Mapping[str, Any]
TOTAL = "all"


def rows_of(ledger: Ledger, results: Sequence[Result], interval: Interval) -> list[dict[str, Any]]:
    """One row per result and task, and one for all tasks together; says what is missing."""
    rows: list[dict[str, Any]] = []
    for result in results:
        wanted = result.wanted
        summary = ledger.summary(wanted.cell(), wanted.episodes(), allow_missing=True)
        counts = [*(wanted.trials for _ in summary.tasks), wanted.trials * len(summary.tasks)]
        pairs = zip(_with_total(summary), counts, strict=True)
        rows += [_row(result, score, states, interval) for score, states in pairs]
    return rows


def _with_total(summary: Summary) -> list[TaskScore]:
    total = TaskScore(TOTAL, summary.successes, summary.trials, summary.missing)
    return [*summary.tasks, total]


def _row(result: Result, score: TaskScore, states: int, interval: Interval) -> dict[str, Any]:
    played = min(states, score.trials)  # each of them first, before any repeat
    low, high = interval(score.successes, score.trials, played) if played else (0.0, 1.0)
    return {
        "backbone": result.name,
        "checkpoint": result.label,
        "benchmark": result.wanted.benchmark.name,
        "task": score.task,
        "successes": score.successes,
        "trials": score.trials,
        "missing": score.missing,
        "low": round(low, 4),
        "high": round(high, 4),
        "horizon": result.wanted.horizon,
        "step": result.wanted.checkpoint.step,
        "policy": result.wanted.checkpoint.digest,
        "run": result.wanted.checkpoint.run,
    }


def score_text(row: Row) -> str:
    """Success in percent with its 95% interval and the counts behind it."""
    if not row["trials"]:
        return "no trials"
    rate = 100 * row["successes"] / row["trials"]
    text = f"{rate:3.0f}% [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
    counts = f" {row['successes']}/{row['trials']}"
    return text + counts + (f" ({row['missing']} missing)" if row["missing"] else "")


def score_table(rows: Iterable[Row]) -> str:
    """backbone × task, with a column per kind of checkpoint."""
    rows = list(rows)
    labels = list(dict.fromkeys(row["checkpoint"] for row in rows))
    cells = {(row["backbone"], row["task"], row["checkpoint"]): score_text(row) for row in rows}
    lines = [["backbone", "task", *labels]]
    for backbone, task in dict.fromkeys((row["backbone"], row["task"]) for row in rows):
        lines.append([backbone, task, *(cells.get((backbone, task, x), "") for x in labels)])
    return aligned(lines)


def policies(results: Iterable[Result]) -> str:
    """A line per trained policy, named as `jobs/evaluate.py --policy` takes it."""
    trained = [result for result in results if result.label == "trained"]
    lines = [
        f"{one.name}: {one.wanted.checkpoint.run}@{one.wanted.checkpoint.step}" for one in trained
    ]
    return "\n".join(["Policies, for jobs/evaluate.py --policy:", *lines])


def standing_text(row: Row) -> str:
    """Best with its interval, what confirmation says of it, and which cell it is.

    A run that was stopped early has a best so far, without an interval.
    """
    if "low" not in row:
        return f"{100 * row['success']:.0f}% when it was stopped (step {row['step']})"
    best = f"{100 * row['success']:.0f}% [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
    if "confirmed" in row:
        low, high = 100 * row["confirmed_low"], 100 * row["confirmed_high"]
        best += f", confirmed {100 * row['confirmed']:.0f}% [{low:.0f}, {high:.0f}]"
    return f"{best} (step {row['step']}, horizon {row['horizon']})"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell, with a rule below the heading."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    padded = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([padded[0], "  ".join("─" * width for width in widths), *padded[1:]])
