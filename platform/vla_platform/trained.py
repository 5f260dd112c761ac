"""What is trained, on what and for whom, and making sure that the store has it.

A run is trained under a lease, so that studies which share it train it once.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from envs.api import Benchmark, TrainingRecipe
from vla_platform import artifacts, demos, failures, stages, training
from vla_platform.artifacts import Checkpoint
from vla_platform.cluster import Cluster
from vla_platform.contest import Judge, Rules
from vla_platform.demos import Demonstrations
from vla_platform.inference import LoadPolicy
from vla_platform.lease import Claimant, turns
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
    def require_fit(
        self, names: Sequence[str], cluster: Cluster, presets: Mapping[str, Cluster]
    ) -> None: ...
    def require_start(self, run: Any) -> None: ...


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
    @property
    def profile(self) -> str: ...
    def resolved(self, recipe: TrainingRecipe) -> Any: ...
    def id(self, benchmark: Benchmark) -> str: ...


R = TypeVar("R", bound=AnyRun)


@dataclass
class Watch:
    """Adds up what blocks take; `seconds` counts the one under way, too, in any thread."""

    _state: tuple[float, float | None] = (0.0, None)

    @property
    def running(self) -> bool:
        return self._state[1] is not None

    @property
    def seconds(self) -> float:
        ended, began = self._state
        return ended if began is None else ended + time.monotonic() - began

    def __enter__(self) -> None:
        self._state = self.seconds, time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._state = self.seconds, None


@dataclass(frozen=True)
class Training:
    """One run to be trained. id, profile: the run's. make_job: see `training.MakeJob`. stage:
    what its backbone is fine-tuned on first, if anything. require_start: raises where there is
    nothing to start from."""

    name: str
    id: str
    steps: int
    make_job: training.MakeJob
    stage: Stage | None = None
    profile: str = "paper"
    require_start: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Setting:
    """What all runs on one benchmark share. fingerprint: of the simulator's environment.

    data: the expert's demonstrations to train on, or the id of prepared ones. stages: by id,
    besides those that the science knows.
    """

    store: Store
    benchmark: Benchmark
    cluster: Cluster
    science: Science
    fingerprint: str
    data: Demonstrations | str
    rules: Rules
    stages: Mapping[str, Stage] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        if isinstance(self.data, str):
            return self.data
        return self.data.id(self.benchmark, self.fingerprint)

    def completed(self, run: R) -> R:
        """The run as it is trained, nothing left open: on this data, by the benchmark's recipe."""
        named = dataclasses.replace(run, dataset=self.dataset)  # type: ignore[type-var]
        return named.resolved(self.benchmark.recipe)


def data_of(
    store: Store,
    row: Benchmark,
    tasks: Sequence[str],
    each: int | None = None,
    chosen: str | None = None,
) -> Demonstrations | str:
    """What to train on: published data where they are prepared, else an expert's.

    each: tries per task, which ask for the expert's. chosen: id of the dataset to train on
    instead. ValueError where there is nothing, before anything is started.
    """
    if chosen is not None:
        return artifacts.require_dataset(store, chosen)
    published = artifacts.published_dataset(store, row.dataset) if each is None else None
    return published or Demonstrations.of(row, tasks, each)


def start_of(run: AnyRun, science: Science, stages: Mapping[str, Stage]) -> Stage | None:
    """The stage that a run starts from. stages: by id, besides those that the science knows."""
    return (stages.get(run.aux) or science.stage_of(run.aux)) if run.aux else None


def training_of(setting: Setting, run: AnyRun) -> Training:
    """A run as a training. Where policies are tiny, that of step 0 is kept to be compared with."""
    untrained = not setting.cluster.gpus_per_worker
    run, row, science = setting.completed(run), setting.benchmark, setting.science
    assert run.steps is not None
    make_job = partial(
        science.make_job, run, row, science.Engine(**setting.cluster.engine()), untrained
    )
    name = run.backbone if run.policy == "action_query" else f"{run.backbone} {run.policy}"
    stage = start_of(run, science, setting.stages)
    require = partial(science.require_start, run)
    return Training(name, run.id(row), run.steps, make_job, stage, run.profile, require)


def steps(setting: Setting, run: Training) -> list[int]:
    """Training steps whose checkpoints are scored: the recipe's, and the run's last."""
    return [*(s for s in setting.benchmark.recipe.checkpoints if s < run.steps), run.steps]


def published(setting: Setting, run: Training) -> list[Checkpoint]:
    """Checkpoints in the store that are to be scored, by step."""
    wanted = set(steps(setting, run))
    return [each for each in artifacts.checkpoints(setting.store, run.id) if each.step in wanted]


def ensure_trained(setting: Setting, *runs: Training, watch: Watch | None = None) -> float:
    """Train the runs that the store lacks, in one group of workers; seconds spent here.

    Those that another process is at are waited for. watch: counts the seconds as they pass.
    """
    store, watch = setting.store, watch or Watch()
    claimants = [(run, Claimant(store, f"training/{run.id}")) for run in runs]
    while claimants := [pair for pair in claimants if not trained(setting, pair[0])]:
        with ExitStack() as held:
            mine = [run for run, claimant in claimants if _claimed(claimant, held)]
            mine = [run for run in mine if not trained(setting, run)]  # by who held it before
            if mine:
                with watch:
                    _train(setting, mine)
        if not mine:
            time.sleep(POLL_S)
    return watch.seconds


def _train(setting: Setting, runs: Sequence[Training]) -> None:
    """Train the runs, of which the store keeps why the first did not come to its end."""
    try:
        for run in runs:
            run.require_start()
        ensure_dataset(setting)
        tasks = [_task(setting, run) for run in runs]
        training.fit(setting.science.train, tasks, setting.store, setting.cluster)
    except Exception as error:
        failed = next((run for run in runs if not trained(setting, run)), runs[-1])
        failures.record(setting.store, failed.id, failed.name, error)
        raise


def _claimed(claimant: Claimant, held: ExitStack) -> bool:
    lease = claimant.try_take()
    if lease is not None:
        held.enter_context(lease.kept())
    return lease is not None


def _task(setting: Setting, run: Training) -> training.Task:
    """The run as workers get it, after the stage that it starts from, if there is one."""
    start = None
    if run.stage is not None:
        data = {setting.benchmark.name: setting.dataset}
        start = stages.ensure(setting.store, setting.cluster, setting.science, run.stage, data)
    return training.Task(run.id, run.name, run.steps, setting.dataset, run.make_job, start)


def ensure_dataset(
    setting: Setting, progress: Callable[[int, int, int], None] = lambda tried, kept, total: None
) -> None:
    """Collect the demonstrations unless the store has them, or another process is at it.

    FileNotFoundError where nobody can: no expert, and nothing prepared.
    """
    store, dataset, wanted = setting.store, setting.dataset, setting.data
    done = lambda: artifacts.dataset_exists(store, dataset)  # noqa: E731
    if isinstance(wanted, str):
        artifacts.require_dataset(store, wanted)
        return
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


def trained(setting: Setting, run: Training) -> bool:
    """Whether the store has the run's last checkpoint."""
    found = artifacts.checkpoints(setting.store, run.id)
    return bool(found) and found[-1].step >= run.steps
