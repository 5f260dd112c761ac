"""Checkpoints to scores: which episodes a score needs, and running those that are missing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from envs.api import Benchmark
from envs.process import SimulatorProcess
from vla_platform.artifacts import Checkpoint
from vla_platform.cells import Summary
from vla_platform.hosts import Assignment, video_key
from vla_platform.ledger import Ledger
from vla_platform.rollouts import Pool, Progress, Tally
from vla_platform.rows import Cell, Episode

log = logging.getLogger(__name__)

OWN = "own"
WRONG_WORD = "wrong_word"
Instruct = Callable[[str, int], str]


@dataclass(frozen=True)
class Wanted:
    """One score: a checkpoint on initial states [first, first + trials) of each task.

    instruct: (task, initial state) to the altered instruction; needed when mode is not "own".
    """

    checkpoint: Checkpoint
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
        return [
            cell.episode(task, state, state, self.instruct(task, state) if self.instruct else "")
            for task in self.tasks
            for state in states
        ]


def environment(ledger: Ledger, benchmark: Benchmark) -> str:
    """The hash of this machine's environment for a benchmark; its text goes to the store."""
    with SimulatorProcess(benchmark) as process:
        return ledger.keep_fingerprint(process.fingerprint())


def missing(ledger: Ledger, wanted: Sequence[Wanted]) -> list[Assignment]:
    """What is left to play."""
    return [
        Assignment(score.checkpoint, score.benchmark, episode)
        for score in wanted
        for episode in ledger.missing(score.cell(), score.episodes())
    ]


def play(
    ledger: Ledger, wanted: Sequence[Wanted], pool: Callable[[], Pool], progress: Progress
) -> Tally:
    """Run what is missing (asking for a pool only then) and compact the finished cells."""
    left = missing(ledger, wanted)
    tally = Tally(total=0)
    if left:
        tally = pool().run(left, progress)
        for assignment, reason in tally.errors:
            kind, _, text = reason.partition(": ")
            ledger.record_error(assignment.episode, kind, text)
    for score in wanted:
        ledger.compact(score.cell(), score.episodes())
    return tally


def scores(ledger: Ledger, wanted: Sequence[Wanted]) -> list[Summary]:
    """Successes and trials of each; says what is missing rather than hiding it."""
    return [ledger.summary(score.cell(), score.episodes(), allow_missing=True) for score in wanted]


def film(
    ledger: Ledger, wanted: Sequence[Wanted], per_task: int, pool: Callable[[], Pool]
) -> list[str]:
    """Videos of the first failures and successes of each task: store keys.

    Episodes are reproducible, so they are rendered only now, by playing the chosen again.
    """
    chosen = [item for score in wanted for item in _to_film(ledger, score, per_task)]
    keys = [video_key(item.episode) for item in chosen]
    left = [a for a, key in zip(chosen, keys, strict=True) if not ledger.store.exists(key)]
    if left:
        pool().run(left)
    return [key for key in keys if ledger.store.exists(key)]


def _to_film(ledger: Ledger, score: Wanted, per_task: int) -> list[Assignment]:
    rows = ledger.read(score.cell()).table.to_pylist()
    wanted = {episode.key: episode for episode in score.episodes()}
    picked = []
    for task in score.tasks:
        for outcome in (True, False):
            keys = [r["key"] for r in rows if r["task"] == task and r["success"] is outcome]
            mine = [wanted[key] for key in keys if key in wanted][:per_task]
            picked += [Assignment(score.checkpoint, score.benchmark, e, record=True) for e in mine]
    return picked
