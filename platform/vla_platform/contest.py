"""Which checkpoint × horizon of a run is best: played as checkpoints land, the hopeless stopped.

The winner is then played on confirmation states, which took no part in choosing it. What was
played before is found in the ledger, so a contest that was killed takes the same decisions again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from envs.api import Benchmark
from vla_platform.artifacts import Checkpoint
from vla_platform.assignments import Assignment
from vla_platform.ledger import Ledger
from vla_platform.rows import Cell, Episode

State = tuple[str, int]
"""A task and an initial state of it."""
Outcomes = dict[str, dict[int, float]]
"""task -> initial state -> outcome, 0 to 1."""
Play = Callable[[Sequence[Assignment]], None]
"""Plays episodes and returns when all have rows; raises when some ended in errors."""


class UnplayedError(Exception):
    """Episodes that a score needs have no row, and nobody is there to play them."""


@dataclass(frozen=True)
class Rules:
    """How a run is scored (paper 3.3): the same for all runs that are compared.

    states: initial states per task that choose the best. confirm: fresh ones per task for the
    winner, 0 for none; within: half the width that the confirmed 95% interval may have, which
    then sets their number by the winner's spread. error: probability allowed for stopping a cell
    that a full evaluation would call best; None plays all. look: states of a cell between two
    looks.
    """

    tasks: tuple[str, ...]
    states: int
    horizons: tuple[int, ...]
    confirm: int = 0
    error: float | None = 0.05
    look: int = 30
    within: float | None = None


class Judge(Protocol):
    """The statistics, handed in by the job (`vlm4vla.sequential`, `vlm4vla.selection`)."""

    @property
    def order(self) -> Callable[..., Sequence[State]]: ...
    @property
    def hopeless(self) -> Callable[..., set[Any]]: ...
    @property
    def select(self) -> Callable[..., Any]: ...
    @property
    def confirmation_states(self) -> Callable[..., int]: ...


@dataclass(frozen=True)
class Entrant:
    """One cell of the contest."""

    checkpoint: Checkpoint
    horizon: int

    @property
    def step(self) -> int:
        return self.checkpoint.step


@dataclass(frozen=True)
class Standing:
    """A run's score. selection: what `Judge.select` found; its winner is an `Entrant`.

    outcomes: the winner's on the states that chose it, over all tasks; confirmed: states that
    confirmed. played: episodes behind the choice; saved: those that a full evaluation would have
    played in addition.
    """

    selection: Any
    outcomes: tuple[float, ...]
    confirmed: int
    played: int
    saved: int

    @property
    def states(self) -> int:
        """That chose, over all tasks."""
        return len(self.outcomes)


class Contest:
    """The cells of one run. steps: the checkpoints that will ever compete.

    profile: the run's; `benchmark` is the row on which policies of it are played. precision: in
    which they answer.
    """

    def __init__(
        self,
        ledger: Ledger,
        benchmark: Benchmark,
        fingerprint: str,
        rules: Rules,
        judge: Judge,
        steps: Sequence[int],
        play: Play | None = None,
        profile: str = "paper",
        precision: str = "fp32",
    ) -> None:
        self.ledger, self.benchmark, self.fingerprint = ledger, benchmark, fingerprint
        self.rules, self.judge, self.play = rules, judge, play
        self.profile, self.precision = profile, precision
        self.order = judge.order(rules.tasks, rules.states)
        self.competing = len(steps) * len(rules.horizons)
        self.outcomes: dict[Entrant, list[float]] = {}
        self.stopped: set[Entrant] = set()
        self._known: dict[Entrant, dict[State, Episode]] = {}  # a key is hashed once
        self._completed: dict[Entrant, dict[str, float]] = {}  # rows never change: read once
        self._loose: set[Entrant] = set()

    def enter(self, checkpoint: Checkpoint) -> dict[Entrant, float]:
        """Play a checkpoint at every horizon; mean outcomes so far, fewer states if hopeless.

        UnplayedError when rows are missing and there is no `play`.
        """
        fresh = [Entrant(checkpoint, horizon) for horizon in self.rules.horizons]
        for upto in (*range(self.rules.look, len(self.order), self.rules.look), len(self.order)):
            alive = [entrant for entrant in fresh if entrant not in self.stopped]
            for entrant, outcomes in self._played(alive, self.order[:upto]).items():
                self.outcomes[entrant] = outcomes
            self._stop_hopeless()
        for entrant in fresh:
            self._compact(entrant, self.order[: len(self.outcomes[entrant])])
        return {entrant: _mean(self.outcomes[entrant]) for entrant in fresh}

    def finish(self) -> Standing:
        """Choose among the cells that were played to the end, then confirm the winner."""
        full = {e: self._nested(e) for e in self.outcomes if e not in self.stopped}
        selection = self.judge.select(full, None)
        winner: Entrant = selection.winner
        confirmed = self._confirmation(full[winner])
        if confirmed:
            outcomes = self._played([winner], confirmed)[winner]
            self._compact(winner, confirmed)
            selection = self.judge.select(full, _nested(confirmed, outcomes))
        played = sum(map(len, self.outcomes.values()))
        everything = self.competing * len(self.order)
        chose = tuple(self.outcomes[winner])
        return Standing(selection, chose, len(confirmed), played, everything - played)

    def _stop_hopeless(self) -> None:
        if self.rules.error is not None:
            self.stopped |= self.judge.hopeless(
                self.outcomes, len(self.order), self.rules.error, self.competing
            )

    def _confirmation(self, chosen_on: Outcomes) -> list[State]:
        count, within = self.rules.confirm, self.rules.within
        if within is not None:
            count = self.judge.confirmation_states(within, chosen_on)
        first = self.benchmark.confirmation_from
        if first is None:
            first = max(self.benchmark.trials, self.rules.states)
        states = range(first, first + count)
        return [(task, state) for task in self.rules.tasks for state in states]

    def _played(
        self, entrants: Sequence[Entrant], states: Sequence[State]
    ) -> dict[Entrant, list[float]]:
        """Outcomes of the states, in their order, after playing those that have none."""
        episodes = {entrant: self._episodes(entrant, states) for entrant in entrants}
        left = [
            Assignment(entrant.checkpoint, self.benchmark, episode)
            for entrant, wanted in episodes.items()
            for episode in self._missing(entrant, wanted)
        ]
        if left and self.play is None:
            raise UnplayedError(f"{len(left)} episodes of {left[0].checkpoint} have no row yet")
        if left and self.play is not None:
            self.play(left)
        for entrant, wanted in episodes.items():
            if self._unread(entrant, wanted):
                self._read(entrant)
        return {e: [self._completed[e][w.key] for w in wanted] for e, wanted in episodes.items()}

    def _missing(self, entrant: Entrant, episodes: Sequence[Episode]) -> list[Episode]:
        if entrant not in self._completed:
            self._read(entrant)  # of a finished cell this one reading tells all
        unread = self._unread(entrant, episodes)
        return self.ledger.missing(self._cell(entrant), unread) if unread else []

    def _unread(self, entrant: Entrant, episodes: Sequence[Episode]) -> list[Episode]:
        known = self._completed.get(entrant, {})
        return [episode for episode in episodes if episode.key not in known]

    def _read(self, entrant: Entrant) -> None:
        """Outcomes of all the cell's episodes, by key."""
        rows = self.ledger.read(self._cell(entrant))
        table = rows.require_sound()
        pairs = zip(table["key"].to_pylist(), table["completed"].to_pylist(), strict=True)
        self._completed[entrant] = {key: done / self.benchmark.chain for key, done in pairs}
        if rows.loose:
            self._loose.add(entrant)

    def _compact(self, entrant: Entrant, states: Sequence[State]) -> None:
        if entrant in self._loose:
            self.ledger.compact(self._cell(entrant), self._episodes(entrant, states))

    def _episodes(self, entrant: Entrant, states: Sequence[State]) -> list[Episode]:
        cell, known = self._cell(entrant), self._known.setdefault(entrant, {})
        for task, state in states:
            if (task, state) not in known:
                known[task, state] = cell.episode(task, state, state, "")
        return [known[state] for state in states]

    def _cell(self, entrant: Entrant) -> Cell:
        return Cell(
            policy=entrant.checkpoint.digest,
            benchmark=self.benchmark.name,
            horizon=entrant.horizon,
            fingerprint=self.fingerprint,
            profile=self.profile,
            precision=self.precision,
        )

    def _nested(self, entrant: Entrant) -> Outcomes:
        return _nested(self.order, self.outcomes[entrant])


def _nested(states: Sequence[State], outcomes: Sequence[float]) -> Outcomes:
    nested: Outcomes = {}
    for (task, state), outcome in zip(states, outcomes, strict=True):
        nested.setdefault(task, {})[state] = outcome
    return nested


def _mean(outcomes: Sequence[float]) -> float:
    return sum(outcomes) / len(outcomes)
