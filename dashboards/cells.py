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
    """Sums over a task's episodes. wall_s, steps: totals. states: initial states, played once or
    repeatedly."""

    name: str
    successes: int
    trials: int
    states: int
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
    def states(self) -> int:
        return sum(task.states for task in self.tasks)

    @property
    def unfinished_episodes(self) -> int:
        """Episodes of which only infrastructure errors are known."""
        return len({failure.key for failure in self.failures if not failure.finished})

    def outcomes(self, chained: bool = False) -> dict[str, dict[int, float]]:
        """task -> initial state -> outcome: success, or subtasks completed of a chain.

        The mean of a state's repeats (other seeds).
        """
        return self._means(self.table["completed" if chained else "success"].to_pylist())

    def reached(self, subtasks: int) -> dict[str, dict[int, float]]:
        """task -> initial state -> the share of its repeats that completed so many of a chain."""
        return self._means([done >= subtasks for done in self.table["completed"].to_pylist()])

    def _means(self, outcomes: Sequence[float]) -> dict[str, dict[int, float]]:
        """Outcomes of the rows as means by task and initial state."""
        columns = [self.table[name].to_pylist() for name in ("task", "initial_state")]
        found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for task, state, outcome in zip(*columns, outcomes, strict=True):
            found[task][state].append(float(outcome))
        return {
            task: {state: sum(repeats) / len(repeats) for state, repeats in states.items()}
            for task, states in found.items()
        }


def last_line(text: str) -> str:
    """Of an error with its trace, what says it."""
    return (text.strip().splitlines() or [""])[-1]


def tasks_of(table: pa.Table) -> tuple[Task, ...]:
    """Sums by task of rows."""
    sums = table.group_by("task", use_threads=False).aggregate(
        [(name, "sum") for name in ("success", "completed", "steps", "wall_s")]
        + [("key", "count"), ("initial_state", "count_distinct")]
    )
    rows: Sequence[dict[str, Any]] = sums.sort_by("task").to_pylist()
    return tuple(
        Task(
            row["task"],
            int(row["success_sum"]),
            row["key_count"],
            row["initial_state_count_distinct"],
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
