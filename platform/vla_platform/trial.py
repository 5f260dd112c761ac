"""One run of a study: trained under a lease, and scored while its checkpoints land.

Training and rollouts meet in the store alone: whoever trains publishes checkpoints there, and
whoever scores takes them as they become visible. So two studies that share a run train it once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from envs.benchmarks import evaluated
from vla_platform.artifacts import Checkpoint
from vla_platform.assignments import Assignment
from vla_platform.contest import Contest, Standing, UnplayedError
from vla_platform.ledger import Ledger
from vla_platform.rollouts import Pool
from vla_platform.trained import POLL_S, Setting, Training, Watch, ensure_trained, published, steps


class RolloutsError(RuntimeError):
    """Episodes ended in infrastructure errors, so a score has no trials to stand on."""


@dataclass
class Spent:
    """What scoring a run took, this time; of a training under way what it took so far."""

    training: Watch = field(default_factory=Watch)
    rollout_s: float = 0.0
    episodes: int = 0


@dataclass(frozen=True)
class Landed:
    """After a checkpoint was played. score: the best horizon's mean outcome; best: so far."""

    step: int
    score: float
    best: float


@dataclass
class Trial:
    """A run with its score. pool: asked for when there is something to play."""

    setting: Setting
    run: Training
    pool: Callable[[], Pool] | None = None
    spent: Spent = field(default_factory=Spent)

    @property
    def gpu_hours(self) -> float:
        """Of the training, by what it may take at most."""
        return self.spent.training.seconds * self.setting.cluster.training_gpus / 3600

    def standing(self) -> Standing | None:
        """The score if all of it is in the store, without training or playing anything."""
        found = published(self.setting, self.run)
        if [each.step for each in found] != steps(self.setting, self.run):
            return None
        contest = self._contest()
        try:
            for checkpoint in found:
                contest.enter(checkpoint)
            return contest.finish()
        except UnplayedError:
            return None

    def score(self, report: Callable[[Landed], None] = lambda landed: None) -> Standing:
        """Train what is missing and play checkpoints as they land, then confirm the winner."""
        contest, best = self._contest(), 0.0
        for checkpoint in self._landing():
            score = max(contest.enter(checkpoint).values())
            best = max(best, score)
            report(Landed(checkpoint.step, score, best))
        return contest.finish()

    def by_step(self) -> dict[int, float]:
        """The best horizon's mean outcome of each checkpoint that the store has."""
        contest, found = self._contest(), published(self.setting, self.run)
        return {each.step: max(contest.enter(each).values()) for each in found}

    def _contest(self) -> Contest:
        return Contest(
            Ledger(self.setting.store),
            evaluated(self.setting.benchmark, self.run.profile),
            self.setting.fingerprint,
            self.setting.rules,
            self.setting.science,
            steps(self.setting, self.run),
            self._play if self.pool else None,
            self.run.profile,
            self.setting.cluster.answers_in,
        )

    def _landing(self) -> Iterator[Checkpoint]:
        """The run's checkpoints in order, each once it is visible; trains beside."""
        wanted = steps(self.setting, self.run)
        with _beside(self._train) as ended:
            while wanted:
                over = ended.done()  # asked first: what it published is in the list then
                found = {each.step: each for each in published(self.setting, self.run)}
                while wanted and wanted[0] in found:
                    yield found[wanted.pop(0)]
                if wanted and over:
                    ended.result()
                    raise RuntimeError(f"{self.run.name}: training ended without step {wanted[0]}")
                if wanted:
                    time.sleep(POLL_S)

    def _train(self) -> None:
        ensure_trained(self.setting, self.run, watch=self.spent.training)

    def _play(self, assignments: Sequence[Assignment]) -> None:
        assert self.pool is not None
        began = time.monotonic()
        tally = self.pool().run(assignments)
        self.spent.rollout_s += time.monotonic() - began
        self.spent.episodes += tally.done
        if tally.errors:
            assignment, reason = tally.errors[0]
            raise RolloutsError(
                f"{len(tally.errors)} of {tally.total} episodes of {assignment.checkpoint} ended "
                f"in errors, first {assignment.episode.task} #{assignment.episode.initial_state}: "
                f"{reason}; the same command tries them again"
            )


@contextmanager
def _beside(work: Callable[[], None]) -> Iterator[Future[None]]:
    """Run `work` in a thread that nobody waits for if the block is left early.

    Ray's trainer cannot be stopped from outside: a training left so ends with its process.
    """
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
            future.set_result(None)
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="training", daemon=True).start()
    yield future
