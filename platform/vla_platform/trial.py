"""One run of a study: trained under a lease, and scored while its checkpoints land.

Training and rollouts meet in the store alone: whoever trains publishes checkpoints there, and
whoever scores takes them as they become visible. So two studies that share a run train it once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from envs.api import Benchmark, TrainingRecipe
from vla_platform import artifacts, demos, stages, training
from vla_platform.artifacts import Checkpoint
from vla_platform.assignments import Assignment
from vla_platform.cluster import Cluster
from vla_platform.contest import Contest, Judge, Rules, Standing, UnplayedError
from vla_platform.demos import Demonstrations
from vla_platform.inference import LoadPolicy
from vla_platform.lease import turns
from vla_platform.ledger import Ledger
from vla_platform.rollouts import Pool
from vla_platform.stages import Stage, StageScience
from vla_platform.store import Store

POLL_S = 0.5
"""How often the store is asked for new checkpoints, or for a lease that another holds."""


class Science(Judge, StageScience, Protocol):
    """What runs need of the models' side: the module `vlm4vla.science`, handed in by the job."""

    @property
    def load_policy(self) -> LoadPolicy: ...
    @property
    def encode_shard(self) -> demos.Encode: ...
    @property
    def build_manifest(self) -> demos.Finish: ...
    @property
    def make_job(self) -> Callable[..., Any]: ...
    def stage_of(self, aux: str) -> Stage: ...


class AnyRun(Protocol):
    """What is asked of a run, which is a dataclass: `vlm4vla.run.Run` is one."""

    @property
    def backbone(self) -> str: ...
    @property
    def benchmark(self) -> str: ...
    @property
    def policy(self) -> str: ...
    @property
    def steps(self) -> int | None: ...
    @property
    def aux(self) -> str | None: ...
    def resolved(self, recipe: TrainingRecipe) -> Any: ...
    def id(self, benchmark: Benchmark) -> str: ...


@dataclass(frozen=True)
class Training:
    """One run to be trained. id: the run's. make_job: see `training.MakeJob`. stage: what its
    backbone is fine-tuned on first, if anything."""

    name: str
    id: str
    steps: int
    make_job: training.MakeJob
    stage: Stage | None = None


@dataclass(frozen=True)
class Setting:
    """What all runs on one benchmark share. fingerprint: of the simulator's environment.

    demonstrations: the expert's to train on; None for the benchmark's published ones. stages:
    by id, besides those that the science knows.
    """

    store: Store
    benchmark: Benchmark
    cluster: Cluster
    science: Science
    fingerprint: str
    demonstrations: Demonstrations | None
    rules: Rules
    stages: Mapping[str, Stage] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        if self.demonstrations is None:
            return self.benchmark.dataset
        return self.demonstrations.id(self.benchmark, self.fingerprint)


class RolloutsError(RuntimeError):
    """Episodes ended in infrastructure errors, so a score has no trials to stand on."""


@dataclass
class Spent:
    """What scoring a run took, this time."""

    training_s: float = 0.0
    gpu_hours: float = 0.0
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
            self.setting.benchmark,
            self.setting.fingerprint,
            self.setting.rules,
            self.setting.science,
            steps(self.setting, self.run),
            self._play if self.pool else None,
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
        self.spent.training_s = ensure_trained(self.setting, self.run)
        cluster = self.setting.cluster
        gpus = cluster.workers[1] * cluster.gpus_per_worker
        self.spent.gpu_hours = self.spent.training_s * gpus / 3600

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


def training_of(setting: Setting, run: AnyRun) -> Training:
    """A run as a training. Where policies are tiny, that of step 0 is kept to be compared with."""
    untrained = not setting.cluster.gpus_per_worker
    run, row, science = run.resolved(setting.benchmark.recipe), setting.benchmark, setting.science
    assert run.steps is not None
    make_job = partial(
        science.make_job, run, row, science.Engine(**setting.cluster.engine()), untrained
    )
    name = run.backbone if run.policy == "action_query" else f"{run.backbone} {run.policy}"
    stage = run.aux and (setting.stages.get(run.aux) or science.stage_of(run.aux))
    return Training(name, run.id(row), run.steps, make_job, stage or None)


def steps(setting: Setting, run: Training) -> list[int]:
    """Training steps whose checkpoints are scored: the recipe's, and the run's last."""
    return [*(s for s in setting.benchmark.recipe.checkpoints if s < run.steps), run.steps]


def published(setting: Setting, run: Training) -> list[Checkpoint]:
    """Checkpoints in the store that are to be scored, by step."""
    wanted = set(steps(setting, run))
    return [each for each in artifacts.checkpoints(setting.store, run.id) if each.step in wanted]


def ensure_trained(setting: Setting, run: Training) -> float:
    """Train the run unless the store has it, or another process is at it; seconds spent here."""
    began, spent = time.monotonic(), 0.0
    for lease in turns(setting.store, f"training/{run.id}", lambda: _trained(setting, run)):
        with lease:
            ensure_dataset(setting)
            start = None
            if run.stage is not None:
                data = {setting.benchmark.name: setting.dataset}
                start = stages.ensure(
                    setting.store, setting.cluster, setting.science, run.stage, data
                )
            training.fit(
                setting.science.train,
                run.make_job,
                run.id,
                setting.dataset,
                setting.store,
                setting.cluster,
                run.name,
                run.steps,
                start,
            )
            spent = time.monotonic() - began
    return spent


def ensure_dataset(
    setting: Setting, progress: Callable[[int, int, int], None] = lambda tried, kept, total: None
) -> None:
    """Collect the demonstrations unless the store has them, or another process is at it."""
    store, dataset, wanted = setting.store, setting.dataset, setting.demonstrations
    if wanted is None:
        return
    done = lambda: artifacts.dataset_exists(store, dataset)  # noqa: E731
    for lease in turns(store, f"datasets/{dataset}", done):
        with lease:
            demos.collect(
                store,
                dataset,
                setting.benchmark,
                wanted,
                setting.science.encode_shard,
                setting.science.build_manifest,
                progress,
            )


def _trained(setting: Setting, run: Training) -> bool:
    found = artifacts.checkpoints(setting.store, run.id)
    return bool(found) and found[-1].step >= run.steps


@contextmanager
def _beside(work: Callable[[], None]) -> Iterator[Future[None]]:
    """Run `work` in a thread that nobody waits for if the block is left early."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
            future.set_result(None)
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="training", daemon=True).start()
    yield future
