"""A cell as stored: its rows, the sums over them, and what stands in the way of a score."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

COMPLETE, UNFINISHED, BROKEN = "complete", "unfinished", "broken"


@dataclass(frozen=True)
class Problem:
    """A stored object that cannot be trusted."""

    key: str
    reason: str


@dataclass(frozen=True)
class Failure:
    """An infrastructure error that was recorded; never a result."""

    key: str
    task: str
    initial_state: int
    cause: str
    message: str
    finished: bool
    """Whether the episode has a row after all."""


@dataclass(frozen=True)
class Task:
    """Sums over a task's episodes. wall_s, steps: totals."""

    name: str
    successes: int
    trials: int
    completed: int
    steps: int
    wall_s: float


@dataclass(frozen=True)
class Cell:
    """A cell as stored. fields: of its cell.json, {} when that is unreadable.

    status: "complete" (compacted), "unfinished" (episodes were asked for that are not there,
    or the study still runs), "broken" (some object cannot be trusted: it has no score).
    """

    id: str
    fields: Mapping[str, Any]
    status: str
    table: pa.Table
    tasks: tuple[Task, ...]
    problems: tuple[Problem, ...] = ()
    failures: tuple[Failure, ...] = ()
    loose: int = 0

    @property
    def successes(self) -> int:
        return sum(task.successes for task in self.tasks)

    @property
    def trials(self) -> int:
        return sum(task.trials for task in self.tasks)

    @property
    def unfinished_episodes(self) -> int:
        """Episodes of which only infrastructure errors are known."""
        return len({failure.key for failure in self.failures if not failure.finished})

    def outcomes(self, chained: bool = False) -> dict[str, dict[int, float]]:
        """task -> initial state -> outcome: success, or subtasks completed of a chain.

        ValueError where one state was played twice (other seeds or instructions).
        """
        names = ("task", "initial_state", "completed" if chained else "success")
        columns = [self.table[name].to_pylist() for name in names]
        found: dict[str, dict[int, float]] = defaultdict(dict)
        for task, state, outcome in zip(*columns, strict=True):
            if state in found[task]:
                raise ValueError(f"{task} #{state} was played more than once in cell {self.id}")
            found[task][state] = float(outcome)
        return dict(found)


def last_line(text: str) -> str:
    """Of an error with its trace, what says it."""
    return (text.strip().splitlines() or [""])[-1]


def tasks_of(table: pa.Table) -> tuple[Task, ...]:
    """Sums by task of rows."""
    sums = table.group_by("task", use_threads=False).aggregate(
        [(name, "sum") for name in ("success", "completed", "steps", "wall_s")] + [("key", "count")]
    )
    rows: Sequence[dict[str, Any]] = sums.sort_by("task").to_pylist()
    return tuple(
        Task(
            row["task"],
            int(row["success_sum"]),
            row["key_count"],
            row["completed_sum"],
            row["steps_sum"],
            row["wall_s_sum"],
        )
        for row in rows
    )


def span(cell: Cell) -> tuple[float, float] | None:
    """When the cell's first and last episodes finished (seconds since 1970), None if none did."""
    if not cell.trials:
        return None
    times = cell.table["finished_at"].to_numpy()
    return float(np.min(times)), float(np.max(times))
