"""A sweep: demonstrations, a training per run, rollouts of its checkpoints, and their scores.

Every stage looks in the store first, so a sweep that was killed continues, and one that is
finished only reads.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from envs.api import Benchmark
from envs.benchmarks import evaluated
from vla_platform import artifacts, evaluation, session
from vla_platform.artifacts import Checkpoint
from vla_platform.assignments import Assignment
from vla_platform.cluster import Cluster
from vla_platform.contest import Rules
from vla_platform.demos import Demonstrations
from vla_platform.evaluation import OWN, WRONG_WORD, Instruct, Result, Wanted
from vla_platform.ledger import Ledger
from vla_platform.progress import Meter
from vla_platform.rollouts import Pool
from vla_platform.store import Store
from vla_platform.trained import (
    Science,
    Setting,
    Training,
    ensure_dataset,
    ensure_trained,
    trained,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trials:
    """What every checkpoint is tested on; controls (untrained, wrong word) on half of it.

    film: videos per task and outcome. repeats: episodes of each initial state.
    """

    tasks: tuple[str, ...]
    each: int
    horizon: int
    wrong_word: Instruct | None
    film: int = 0
    repeats: int = 1


@dataclass
class Report:
    """What a sweep did: scores in order, and what they cost this time."""

    results: list[Result]
    dataset: str
    trained_s: float = 0.0
    played: int = 0
    errors: int = 0
    rollout_s: float = 0.0
    videos: list[str] = field(default_factory=list)

    def costs(self) -> str:
        """What this call spent; nothing when everything was in the store."""
        if not self.trained_s and not self.played:
            return "trained nothing and rolled nothing out: everything was in the store"
        return (
            f"trained {self.trained_s:.0f} s; played {self.played} episodes in "
            f"{self.rollout_s:.0f} s; {self.errors} errors"
        )


class Sweep:
    """Trains and scores runs on one benchmark."""

    def __init__(
        self,
        store: Store,
        benchmark: Benchmark,
        cluster: Cluster,
        science: Science,
        say: Callable[[str], None],
    ) -> None:
        self.store, self.benchmark, self.cluster = store, benchmark, cluster
        self.science, self.say = science, say
        self.ledger = Ledger(store)
        self.connected = False
        self.pool: Pool | None = None
        self.fingerprint = evaluation.environment(self.ledger, benchmark)

    def setting(self, data: Demonstrations | str, trials: Trials) -> Setting:
        rules = Rules(trials.tasks, trials.each, (trials.horizon,))
        return Setting(
            self.store,
            self.benchmark,
            self.cluster,
            self.science,
            self.fingerprint,
            data,
            rules,
        )

    def run(self, runs: Sequence[Training], setting: Setting, trials: Trials) -> Report:
        """Everything that is missing, then the scores of everything."""
        report, together = Report([], setting.dataset), self.cluster.together
        for first in range(0, len(runs), together):
            group = runs[first : first + together]
            self._train(group, setting, report)
            for run in group:
                wanted = self._wanted(run, artifacts.checkpoints(self.store, run.id), trials)
                report.results += wanted
                self._play(run.name, [result.wanted for result in wanted], report)
        if trials.film:
            shown = [result.wanted for result in report.results if result.label == "trained"]
            filmed = evaluation.film(self.ledger, shown, trials.film, self._pool)
            report.videos, report.errors = filmed.keys, report.errors + len(filmed.errors)
            self._say_errors("videos", filmed.errors)
        return report

    def _train(self, runs: Sequence[Training], setting: Setting, report: Report) -> None:
        """Those whose last checkpoint is not there."""
        left = [run for run in runs if not trained(setting, run)]
        if left:
            self._connect()
            if self.pool is not None:
                self.pool.rest()  # its cores are the trainings' now
            self._collect(setting)
            for run in left:
                self.say(f"{run.name}: training run {run.id}")
            report.trained_s += ensure_trained(setting, *left)

    def _connect(self) -> None:
        """Ray starts only when there is something to train or to play."""
        if not self.connected:
            self.say(f"Ray dashboard: {session.connect() or 'none'}")
            self.connected = True

    def _collect(self, setting: Setting) -> None:
        if not artifacts.dataset_exists(self.store, setting.dataset):
            self.say(f"{self.benchmark.name}: collecting demonstrations {setting.dataset}")
            with Meter("demonstrations") as meter:
                ensure_dataset(
                    setting, lambda tried, kept, total: meter.show(tried, total, f"{kept} kept")
                )

    def _wanted(self, run: Training, found: Sequence[Checkpoint], trials: Trials) -> list[Result]:
        first, last = found[0], found[-1]
        pairs = [("trained", last, OWN)]
        if first.step == 0:
            pairs.append(("untrained", first, OWN))
        if trials.wrong_word:
            pairs.append(("wrong-word", last, WRONG_WORD))
        return [
            Result(run.name, label, self._score(run, checkpoint, label, mode, trials))
            for label, checkpoint, mode in pairs
        ]

    def _score(
        self, run: Training, checkpoint: Checkpoint, label: str, mode: str, trials: Trials
    ) -> Wanted:
        return Wanted(
            checkpoint=checkpoint,
            benchmark=evaluated(self.benchmark, run.profile),
            horizon=trials.horizon,
            fingerprint=self.fingerprint,
            tasks=trials.tasks,
            trials=trials.each if label == "trained" else -(-trials.each // 2),
            mode=mode,
            profile=run.profile,
            instruct=trials.wrong_word if mode == WRONG_WORD else None,
            repeats=trials.repeats if label == "trained" else 1,
        )

    def _play(self, name: str, wanted: Sequence[Wanted], report: Report) -> None:
        began = time.monotonic()
        with Meter(f"{name} rollouts") as meter:
            tally = evaluation.play(self.ledger, wanted, self._pool, meter.tally)
        if tally.total:
            report.rollout_s += time.monotonic() - began
        report.played += tally.done
        report.errors += len(tally.errors)
        self._say_errors(name, tally.errors)

    def _say_errors(self, name: str, errors: Sequence[tuple[Assignment, str]]) -> None:
        for assignment, reason in errors[:3]:
            episode = assignment.episode
            self.say(f"{name}: error in {episode.task} #{episode.initial_state}: {reason}")

    def _pool(self) -> Pool:
        """One pool for the whole sweep, started with the first episode to play."""
        self._connect()
        if self.pool is None:
            self.pool = Pool(self.store, self.science.load_policy, self.cluster)
        return self.pool

    def __enter__(self) -> Sweep:
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        if self.pool is not None:
            self.pool.__exit__(kind)
