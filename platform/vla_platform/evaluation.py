"""Checkpoints to scores: which episodes a score needs, and running those that are missing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envs.api import Benchmark
from envs.process import SimulatorProcess
from vla_platform.assignments import AnyPolicy, Assignment, Tally, video_key
from vla_platform.ledger import Ledger
from vla_platform.rows import Cell, Episode

if TYPE_CHECKING:
    from vla_platform.rollouts import Pool, Progress  # Ray: only when there is something to play

log = logging.getLogger(__name__)

OWN = "own"
REPEAT = 10_000_000
"""Between the seeds of an initial state's repeated episodes."""
WRONG_WORD = "wrong_word"
Instruct = Callable[[str, int], str]


@dataclass(frozen=True)
class Wanted:
    """One score: a checkpoint on initial states [first, first + trials) of each task.

    ValueError for stored states that are not there.
    instruct: (task, initial state) to the altered instruction; needed when mode is not "own".
    repeats: episodes of each initial state, told apart by their seeds: for stochastic policies.
    """

    checkpoint: AnyPolicy
    benchmark: Benchmark
    horizon: int
    fingerprint: str
    tasks: tuple[str, ...]
    trials: int
    first: int = 0
    mode: str = OWN
    profile: str = "paper"
    precision: str = "fp32"
    instruct: Instruct | None = None
    repeats: int = 1

    def __post_init__(self) -> None:
        row, end = self.benchmark, self.first + self.trials
        if row.stored_states is not None and row.stored_states < end < row.demonstrations_from:
            raise ValueError(
                f"{row.name} has {row.stored_states} initial states of a task, so the last one is "
                f"{row.stored_states - 1}: {self.trials} from {self.first} on are not there"
            )

    def cell(self) -> Cell:
        return Cell(
            policy=self.checkpoint.digest,
            benchmark=self.benchmark.name,
            horizon=self.horizon,
            fingerprint=self.fingerprint,
            instruction_mode=self.mode,
            profile=self.profile,
            precision=self.precision,
        )

    def episodes(self) -> list[Episode]:
        """Every episode of the score; "" stands for the simulator's own instruction."""
        cell = self.cell()
        states = range(self.first, self.first + self.trials)
        said = self.instruct or (lambda task, state: "")
        return [
            cell.episode(task, state, state + repeat * REPEAT, said(task, state))
            for task in self.tasks
            for state in states
            for repeat in range(self.repeats)
        ]


@dataclass
class Result:
    """A score by name. label: "trained", "untrained", "wrong-word", or "horizon 2", …"""

    name: str
    label: str
    wanted: Wanted


@dataclass(frozen=True)
class Filmed:
    """keys: of the videos in the store. errors: replays that made none, and why."""

    keys: list[str]
    errors: list[tuple[Assignment, str]]


def environment(ledger: Ledger, benchmark: Benchmark) -> str:
    """The hash of this machine's environment for a benchmark; its text goes to the store."""
    with SimulatorProcess(benchmark) as process:
        return ledger.keep_fingerprint(process.fingerprint())


def missing(ledger: Ledger, wanted: Sequence[Wanted]) -> list[Assignment]:
    """What is left to play; what several scores share, once."""
    left: dict[str, Assignment] = {}
    for score in wanted:
        for episode in ledger.missing(score.cell(), score.episodes()):
            left.setdefault(episode.key, Assignment(score.checkpoint, score.benchmark, episode))
    return list(left.values())


def play(
    ledger: Ledger, wanted: Sequence[Wanted], pool: Callable[[], Pool], progress: Progress
) -> Tally:
    """Run what is missing (asking for a pool only then) and compact the finished cells."""
    left = missing(ledger, wanted)
    tally = Tally(total=0)
    if left:
        tally = pool().run(left, progress)
    for score in wanted:
        ledger.compact(score.cell(), score.episodes())
    return tally


def film(
    ledger: Ledger, wanted: Sequence[Wanted], per_task: int, pool: Callable[[], Pool]
) -> Filmed:
    """Videos of the first failures and successes of each task, so many of each.

    Episodes are reproducible, so they are rendered only now, by playing the chosen again. A
    replay that does not come out as its row says is an error and leaves no video.
    """
    chosen = [item for score in wanted for item in _to_film(ledger, score, per_task)]
    left = [item for item in chosen if not ledger.store.exists(video_key(item.episode))]
    errors = pool().run(left).errors if left else []
    failed = {assignment.episode.key for assignment, _ in errors}
    keys = [video_key(item.episode) for item in chosen if item.episode.key not in failed]
    return Filmed(keys, errors)


def _to_film(ledger: Ledger, score: Wanted, per_task: int) -> list[Assignment]:
    rows = {row["key"]: row for row in ledger.read(score.cell()).table.to_pylist()}
    picked: list[Assignment] = []
    for task in score.tasks:
        mine = [(e, rows[e.key]) for e in score.episodes() if e.task == task and e.key in rows]
        for outcome in (True, False):
            first = [pair for pair in mine if pair[1]["success"] is outcome][:per_task]
            picked += [Assignment(score.checkpoint, score.benchmark, e, row) for e, row in first]
    return picked
