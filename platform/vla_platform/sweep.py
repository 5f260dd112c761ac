"""A sweep: demonstrations, a training per run, rollouts of its checkpoints, and their scores.

Every stage looks in the store first, so a sweep that was killed continues, and one that is
finished only reads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from envs.api import Benchmark
from envs.benchmarks import evaluated
from vla_platform import artifacts, evaluation, training
from vla_platform.artifacts import Checkpoint
from vla_platform.assignments import PoolError
from vla_platform.cluster import Cluster
from vla_platform.contest import Rules
from vla_platform.demos import Demonstrations
from vla_platform.evaluation import OWN, WRONG_WORD, Instruct, Result, Wanted
from vla_platform.inference import LoadPolicy
from vla_platform.player import Played, Player
from vla_platform.preemption import PreemptedError
from vla_platform.progress import Meter
from vla_platform.store import Store, StoreError
from vla_platform.trained import (
    Science,
    Setting,
    Training,
    Watch,
    ensure_dataset,
    ensure_trained,
    trained,
)

log = logging.getLogger(__name__)

EVERYBODYS = (StoreError, PoolError, PreemptedError)
"""What ends a sweep: the next run would meet it, too."""


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
class Report(Played):
    """What a sweep did. failed: runs that could not be trained, by name, and why."""

    dataset: str = ""
    trained_s: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)

    def costs(self) -> str:
        """What this call spent; nothing when everything was in the store."""
        if not self.trained_s and not self.played:
            return "trained nothing and rolled nothing out: everything was in the store"
        return (
            f"trained {self.trained_s:.0f} s; played {self.played} episodes in "
            f"{self.seconds:.0f} s; {self.errors} errors"
        )


class Sweep(Player):
    """Trains and scores runs on one benchmark."""

    def __init__(
        self,
        store: Store,
        benchmark: Benchmark,
        cluster: Cluster,
        science: Science,
        say: Callable[[str], None],
    ) -> None:
        super().__init__(store, cluster, say)
        self.benchmark, self.science = benchmark, science
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
        report, together = Report(dataset=setting.dataset), self.cluster.together
        for run in runs:
            if not trained(setting, run):
                run.require_start()
        for first in range(0, len(runs), together):
            group = runs[first : first + together]
            self._train(group, setting, report)
            for run in (each for each in group if each.name not in report.failed):
                wanted = self._wanted(run, artifacts.checkpoints(self.store, run.id), trials)
                report.results += wanted
                self.play([result.wanted for result in wanted], report, run.name)
        if trials.film:
            shown = [result.wanted for result in report.results if result.label == "trained"]
            self.film(shown, trials.film, report)
        return report

    def loader(self) -> LoadPolicy | None:
        return self.science.load_policy

    def _train(self, runs: Sequence[Training], setting: Setting, report: Report) -> None:
        """Those whose last checkpoint is not there."""
        left = [run for run in runs if not trained(setting, run)]
        if left:
            self.connect()
            if self.pool is not None:
                self.pool.rest()  # its cores are the trainings' now
            self._collect(setting)
            for run in left:
                self.say(f"{run.name}: training run {run.id}")
            self._train_or_note(left, setting, report)

    def _train_or_note(self, runs: Sequence[Training], setting: Setting, report: Report) -> None:
        """What ends one run's training ends no other's: a group that broke is tried one by one."""
        error = self._broken(runs, setting, report)
        if error is not None and len(runs) > 1:
            for run in runs:
                self._train_or_note([run], setting, report)
        elif error is not None:
            report.failed[runs[0].name] = training.brief(error)
            self.say(f"{runs[0].name}: not trained: {training.brief(error)}")

    def _broken(
        self, runs: Sequence[Training], setting: Setting, report: Report
    ) -> Exception | None:
        watch = Watch()
        try:
            ensure_trained(setting, *runs, watch=watch)
        except EVERYBODYS:
            raise
        except Exception as error:
            return error
        finally:
            report.trained_s += watch.seconds
        return None

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
            precision=self.cluster.answers_in,
            instruct=trials.wrong_word if mode == WRONG_WORD else None,
            repeats=trials.repeats if label == "trained" else 1,
        )
