"""A cell read back: its rows, what is wrong with them, and the score they add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from vla_platform.rows import BrokenRowsError, Cell, Episode


class IncompleteCellError(Exception):
    """A score was asked of a cell that lacks trials."""


@dataclass(frozen=True)
class Problem:
    """A stored object that is not the row it should be."""

    key: str
    reason: str


@dataclass(frozen=True)
class CellRows:
    """A cell's rows, each episode once, ordered by task, initial state and seed.

    loose: how many of them no compacted file holds.
    """

    table: pa.Table
    problems: tuple[Problem, ...] = ()
    loose: int = 0

    def require_sound(self) -> pa.Table:
        """The table, or BrokenRowsError naming what cannot be trusted."""
        if self.problems:
            first = self.problems[0]
            raise BrokenRowsError(
                f"{len(self.problems)} stored object(s) cannot be trusted, first {first.key}:"
                f" {first.reason}. Move them away with the pruning role and evaluate again."
            )
        return self.table


@dataclass(frozen=True)
class TaskScore:
    """successes of `trials` finished episodes; `missing` ones were asked for and never ran."""

    task: str
    successes: int
    trials: int
    missing: int


@dataclass(frozen=True)
class Summary:
    cell: Cell
    tasks: tuple[TaskScore, ...]

    @property
    def successes(self) -> int:
        return sum(task.successes for task in self.tasks)

    @property
    def trials(self) -> int:
        return sum(task.trials for task in self.tasks)

    @property
    def missing(self) -> int:
        return sum(task.missing for task in self.tasks)


def score(
    cell: Cell, wanted: Mapping[str, Episode], rows: CellRows, allow_missing: bool
) -> Summary:
    """Successes and trials per task of the wanted episodes (by key); see `Ledger.summary`."""
    table = rows.require_sound()
    pairs = zip(table["key"].to_pylist(), table["success"].to_pylist(), strict=True)
    outcome = {key: success for key, success in pairs if key in wanted}
    absent = len(wanted) - len(outcome)
    if absent and not allow_missing:
        raise IncompleteCellError(
            f"cell {cell.id} lacks {absent} of {len(wanted)} episodes, so it has no score yet;"
            " evaluate again to run them, or allow missing ones and say so."
        )
    return Summary(cell, tuple(_by_task(wanted, outcome)))


def _by_task(wanted: Mapping[str, Episode], outcome: Mapping[str, bool]) -> Iterator[TaskScore]:
    asked = Counter(episode.task for episode in wanted.values())
    ran = Counter(wanted[key].task for key in outcome)
    won = Counter(wanted[key].task for key, success in outcome.items() if success)
    for task in asked:
        yield TaskScore(task, won[task], ran[task], asked[task] - ran[task])
