"""Ray Tune over runs: grids, Optuna and ASHA, on the success of checkpoints as they land.

Tune's own state (trials, searcher) lies under `tune/` beside the store's rows and is what
`Tuner.restore` and TensorBoard read. The rows stay the truth: a trial whose run is scored in
the store only reads them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pyarrow import fs
from ray import tune
from ray.tune import ExperimentAnalysis
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain

from envs.api import did_you_mean
from envs.hashing import stable_hash
from vla_platform import failures
from vla_platform.contest import Standing
from vla_platform.resuming import GPU_HOURS, TRAINING, Budget, Grid, Limited, NotRestoredError
from vla_platform.rollouts import Pool
from vla_platform.store import Store, StoreUnavailableError
from vla_platform.store_folder import FolderStore
from vla_platform.store_s3 import S3Store
from vla_platform.trained import AnyRun, Setting, training_of
from vla_platform.trial import Landed, Trial

log = logging.getLogger(__name__)

SUCCESS = "success"
OBJECTIVES = {SUCCESS: "max", GPU_HOURS: "min"}
"""What a search may look at, and which way is better."""
RESOURCES: dict[str, float] = {"CPU": 0, "memory": 2**20}
"""A trial only waits: cores are for its training and rollouts. Tune refuses to take nothing."""
ATTEMPTS = 9
"""How often Tune asks S3 for one thing: with its pauses a minute of an endpoint that is away."""
KEPT = ("experiment_state-", "callback-states-")
GRIDS, OPTUNAS = (*KEPT, "basic-variant-state-"), (*KEPT, "search_gen_state-", "searcher-state-")
"""What the names of Tune's files begin with. Without a searcher's own, Tune ends a search that it
restores without trying what is left."""
RETRIES = 2
"""How often Tune starts a trial again, as when its process died; the store keeps what was done."""


@dataclass(frozen=True)
class Search:
    """What is varied, and how it is searched.

    space: of a trial's config, as Tune has it. samples: trials per grid point, or of a search.
    optuna: propose from what was found so far. asha: stop runs that fall behind. objectives:
    several only with optuna, and without asha. concurrent: runs at a time. max_gpu_hours: end
    when so many were spent; a search with more continues. scope: what scores depend on besides
    the space (plain values).
    """

    name: str
    space: Mapping[str, Any]
    samples: int = 1
    optuna: bool = False
    asha: bool = False
    objectives: tuple[str, ...] = (SUCCESS,)
    concurrent: int = 1
    max_gpu_hours: float | None = None
    seed: int = 0
    scope: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = set(self.objectives) - set(OBJECTIVES)
        if unknown or not self.objectives:
            raise ValueError(f"objectives are {', '.join(OBJECTIVES)}, not {sorted(unknown)}")
        if len(self.objectives) > 1 and (self.asha or not self.optuna):
            raise ValueError("several objectives need Optuna, and ASHA off: it compares one")

    @property
    def experiment(self) -> str:
        """Its folder's name: the same search continues there, another one begins its own."""
        space = {name: _spelled(values) for name, values in self.space.items()}
        fields: dict[str, Any] = {"samples": self.samples, "optuna": self.optuna, "asha": self.asha}
        fields |= {"space": space, "objectives": list(self.objectives), "seed": self.seed}
        fields["scope"] = dict(self.scope)
        return f"{self.name}-{stable_hash(fields)[:8]}"


def _spelled(values: Any) -> str:
    """The same for equal values in every process, which a distribution's own repr is not."""
    if isinstance(values, Domain):
        return f"{values.get_sampler()} {values.domain_str}"
    return repr(values)


@dataclass(frozen=True)
class Objective:
    """What Tune calls with a trial's config; it reports after every checkpoint that landed.

    settings: by benchmark. make_run: a config to the run it stands for. began: when this command
    did, in seconds since 1970; a final error of a training since then is not met again.
    """

    settings: Mapping[str, Setting]
    make_run: Callable[[Mapping[str, Any]], AnyRun]
    began: float = field(default_factory=time.time)

    def __call__(self, config: Mapping[str, Any]) -> None:
        run = self.make_run(config)
        setting = self.settings[run.benchmark]
        pool = partial(_PROCESS.pool_of, setting)
        trial = Trial(setting, training_of(setting, run), pool)
        self._require_hope(setting.store, trial.run.id)
        try:
            standing = trial.score(lambda landed: tune.report(_progress(trial, landed)))
        finally:
            _PROCESS.rest()
        tune.report(_spent(trial) | figures(standing))

    def _require_hope(self, store: Store, run: str) -> None:
        """RuntimeError where Tune, which knows no errors apart, starts a trial again in vain."""
        failure = failures.last(store, run)
        if failure is not None and failure.final and failure.at > self.began:
            raise RuntimeError(f"{failure.title} is not tried again: {failure.last_line}")


@dataclass
class _Process:
    """A process that Tune gives trial after trial, which need not start a pool each."""

    pool: Pool | None = None

    def pool_of(self, setting: Setting) -> Pool:
        if self.pool is None:
            self.pool = Pool(setting.store, setting.science.load_policy, setting.cluster)
        return self.pool

    def rest(self) -> None:
        if self.pool is not None:
            self.pool.rest()  # its cores are the next run's now


_PROCESS = _Process()


def search(
    objective: Objective, wanted: Search, telling: tune.Callback | None = None
) -> tune.ResultGrid:
    """Run the search, or what is left of it, to its end (or its budget's).

    telling: says what goes on; Tune itself says nothing. StoreUnavailableError where Tune's own
    files stayed out of reach.
    """
    place = _Place.of(objective, wanted)
    new = partial(_tuner, objective, wanted, place, telling)
    try:
        if not place.begun:
            return new().fit()
        log.info("continuing %s", wanted.experiment)
        # Made for a search that was begun, too: it leaves its settings where `restore` reads them,
        # so that this command's budget and concurrency hold.
        new(begun=True)
        try:
            return _restored(objective, wanted, place).fit()
        except NotRestoredError:
            log.warning(
                "what Tune kept of %s is damaged: the search begins anew, its GPU-hours counted "
                "from now; what the store has is not done again",
                wanted.experiment,
            )
            return new().fit()
    except ConnectionError:  # of Ray itself
        raise
    except OSError as error:  # what pyarrow raises
        raise StoreUnavailableError(
            f"Tune's files of {wanted.experiment} in the store stayed out of reach ({error}): the "
            "same command continues"
        ) from error


@dataclass(frozen=True)
class _Place:
    """Where Tune keeps a search."""

    folder: str
    path: str
    filesystem: fs.FileSystem | None
    kept: tuple[str, ...]

    @classmethod
    def of(cls, objective: Objective, wanted: Search) -> _Place:
        store = next(iter(objective.settings.values())).store
        path = f"{folder(store)}/{wanted.experiment}"
        kept = OPTUNAS if wanted.optuna else GRIDS
        return cls(folder(store), path, _filesystem(store), kept)

    @property
    def begun(self) -> bool:
        """Whether another command began it and lived until Tune had kept all that it needs."""
        if not tune.Tuner.can_restore(self.path, storage_filesystem=self.filesystem):
            return False
        listed = (self.filesystem or fs.LocalFileSystem()).get_file_info(fs.FileSelector(self.path))
        names = [info.base_name for info in listed]
        return all(any(name.startswith(kind) for name in names) for kind in self.kept)


def _tuner(
    objective: Objective,
    wanted: Search,
    place: _Place,
    telling: tune.Callback | None,
    begun: bool = False,
) -> tune.Tuner:
    setting = next(iter(objective.settings.values()))
    budget = Budget(wanted.max_gpu_hours, setting.cluster.training_gpus, begun)
    return tune.Tuner(
        _trainable(objective),
        param_space=dict(wanted.space),
        tune_config=_tune_config(setting, wanted),
        run_config=tune.RunConfig(
            name=wanted.experiment,
            storage_path=place.folder,
            storage_filesystem=place.filesystem,
            callbacks=[budget, *([telling] if telling else [])],
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            verbose=0,
        ),
    )


def _restored(objective: Objective, wanted: Search, place: _Place) -> tune.Tuner:
    return tune.Tuner.restore(
        place.path,
        _trainable(objective),
        resume_unfinished=True,
        restart_errored=True,
        param_space=dict(wanted.space),
        storage_filesystem=place.filesystem,
    )


def _trainable(objective: Objective) -> Any:
    return tune.with_resources(_function(objective), RESOURCES)


def _function(objective: Objective) -> Callable[[Mapping[str, Any]], None]:
    """Tune names trials by it, and gives resources to functions alone."""

    def run(config: Mapping[str, Any]) -> None:
        objective(config)

    return run


def _tune_config(setting: Setting, wanted: Search) -> tune.TuneConfig:
    modes = [OBJECTIVES[name] for name in wanted.objectives]
    one = len(modes) == 1
    return tune.TuneConfig(
        metric=wanted.objectives[0] if one else None,
        mode=modes[0] if one else None,
        search_alg=_searcher(wanted, modes),
        scheduler=_asha(setting) if wanted.asha else FIFOScheduler(),
        num_samples=wanted.samples,
        reuse_actors=not wanted.asha,  # a training that ASHA stops ends with its process
    )


def _searcher(wanted: Search, modes: list[str]) -> Grid | Limited:
    if not wanted.optuna:
        return Grid(max_concurrent=wanted.concurrent)
    names = list(wanted.objectives)
    one = len(names) == 1
    proposed = OptunaSearch(
        metric=names[0] if one else names, mode=modes[0] if one else modes, seed=wanted.seed
    )
    return Limited(proposed, wanted.concurrent)


def _asha(setting: Setting) -> ASHAScheduler:
    """Rungs at every doubling of checkpoints; a trial reports once more at its end."""
    rungs = len(setting.benchmark.recipe.checkpoints) + 1
    return ASHAScheduler(max_t=rungs, grace_period=1, reduction_factor=2)


def figures(standing: Standing) -> dict[str, Any]:
    """A finished run's score as flat numbers: intervals are 95%."""
    selection = standing.selection
    found = {
        SUCCESS: selection.best.value,
        "low": selection.best.low,
        "high": selection.best.high,
        "step": selection.winner.step,
        "horizon": selection.winner.horizon,
        "compared": selection.of,
        "states": standing.states,
        "played": standing.played,
        "saved": standing.saved,
    }
    if selection.confirmed is not None:
        named = zip(
            ("confirmed", "confirmed_low", "confirmed_high"), selection.confirmed, strict=True
        )
        found |= dict(named) | {"confirmed_on": standing.confirmed}
    return found


def _progress(trial: Trial, landed: Landed) -> dict[str, Any]:
    return _spent(trial) | {
        SUCCESS: landed.best,
        "checkpoint_success": landed.score,
        "step": landed.step,
    }


def _spent(trial: Trial) -> dict[str, Any]:
    spent = trial.spent
    return {
        "run": trial.run.id,
        GPU_HOURS: trial.gpu_hours,
        TRAINING: spent.training.running,
        "training_s": spent.training.seconds,
        "rollout_s": spent.rollout_s,
        "episodes": spent.episodes,
    }


def folder(store: Store) -> str:
    """Where Tune's state of studies on this store lies; with S3, in its file system's spelling."""
    if isinstance(store, FolderStore):
        return str(Path(store.url).expanduser().absolute() / "tune")
    assert isinstance(store, S3Store)
    return "/".join(part for part in (store.bucket, store.prefix.strip("/"), "tune") if part)


def results(store: Store, experiment: str) -> tune.ResultGrid:
    """What Tune kept of the search `tune/EXPERIMENT`; ValueError where the store has none.

    Of its `get_dataframe()` a row is a trial, whose column `run` names the run in the store.
    """
    name, found = experiment.rstrip("/"), [each.rstrip("/") for each in store.children("tune")]
    if name not in found:
        raise did_you_mean(f"search in {store.url}:", name, tuple(found))
    path = f"{folder(store)}/{name}"
    return tune.ResultGrid(ExperimentAnalysis(path, storage_filesystem=_filesystem(store)))


def _filesystem(store: Store) -> fs.FileSystem | None:
    if not isinstance(store, S3Store):
        return None
    scheme, _, host = store.endpoint.rpartition("://")
    return fs.S3FileSystem(
        endpoint_override=host or None,
        scheme=scheme or None,
        region=store.region or None,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    )
