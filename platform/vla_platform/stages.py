"""Auxiliary stages in the store: each trained once, and scored before and after.

policies/<stage>/step-…      its weights, as a run's checkpoints
policies/<stage>/stage.json  what it is, its scores and what was left out; put last
datasets/<stage's data>/…    its prepared questions, which stages may share
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ray

from vla_platform import artifacts, training
from vla_platform.artifacts import Checkpoint
from vla_platform.cluster import Cluster
from vla_platform.lease import turns
from vla_platform.local import LocalDataset
from vla_platform.store import Store

log = logging.getLogger(__name__)


class Row(Protocol):
    """A source of questions; see `vlm4vla.aux.datasets.VqaDataset`."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def made_here(self) -> bool: ...
    @property
    def of_demonstrations(self) -> bool: ...


class Stage(Protocol):
    """A dataclass: `vlm4vla.stages.AuxStage` is one."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def data(self) -> str: ...
    @property
    def rows(self) -> Sequence[Row]: ...
    @property
    def steps(self) -> int: ...
    @property
    def weights(self) -> str | None: ...


class StageScience(Protocol):
    """What stages need of the models' side.

    prepare_questions: (stage, folders of its rows by name, put) writes the stage's data.
    score_stage: (stage, data folder, weights file or None, precision) to plain figures.
    """

    @property
    def train(self) -> training.Train: ...
    @property
    def make_stage_job(self) -> Callable[..., Any]: ...
    @property
    def prepare_questions(self) -> Callable[..., Any]: ...
    @property
    def score_stage(self) -> Callable[..., Mapping[str, Any]]: ...
    @property
    def Engine(self) -> Callable[..., Any]: ...  # noqa: N802


def ensure(
    store: Store,
    cluster: Cluster,
    science: StageScience,
    stage: Stage,
    demonstrations: Mapping[str, str],
) -> Checkpoint | None:
    """The stage's last checkpoint, trained and scored unless the store has it.

    None for a stage whose weights others publish.
    demonstrations: ids of prepared ones by benchmark, for rows that are made of those.
    """
    if stage.weights is not None:
        return None
    if not stage.rows:
        raise ValueError(f"the stage {stage.name} has neither data nor published weights")
    for lease in turns(store, f"stages/{stage.id}", lambda: record(store, stage.id) is not None):
        with lease:
            ensure_questions(store, science, stage, demonstrations)
            before = _score(store, cluster, science, stage, None)
            engine = science.Engine(**cluster.engine())
            make_job = partial(_make_job, science.make_stage_job, stage, engine)
            task = training.Task(stage.id, stage.name, stage.steps, stage.data, make_job)
            training.fit(science.train, [task], store, cluster)
            trained = artifacts.checkpoints(store, stage.id)[-1]
            after = _score(store, cluster, science, stage, trained)
            _put_record(store, stage, before, after)
    return artifacts.checkpoints(store, stage.id)[-1]


def record(store: Store, stage: str) -> dict[str, Any] | None:
    """What is told of a finished stage: its fields, `before` and `after`; None if it is not."""
    try:
        told: dict[str, Any] = json.loads(store.get(_key(stage)))
    except KeyError:
        return None
    return told


def _put_record(
    store: Store, stage: Stage, before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    told = {"stage": dataclasses.asdict(stage)}  # type: ignore[call-overload]
    told |= {"data": stage.data, "before": before["scores"], "after": after["scores"]}
    told |= {"counts": after["counts"], "left_out": after["left_out"]}
    for name, found in after["scores"].items():
        was = before["scores"][name]["score"]
        log.info("%s: %s from %.3f to %.3f", stage.name, name, was, found["score"])
    store.put(_key(stage.id), json.dumps(told, indent=1).encode())


def _key(stage: str) -> str:
    return f"policies/{stage}/stage.json"


def ensure_questions(
    store: Store, science: StageScience, stage: Stage, demonstrations: Mapping[str, str]
) -> None:
    """The stage's questions, made unless the store has them.

    FileNotFoundError for published data that nobody prepared.
    """
    for lease in turns(
        store, f"datasets/{stage.data}", lambda: artifacts.dataset_exists(store, stage.data)
    ):
        with lease:
            absent = [row for row in stage.rows if not row.made_here]
            if absent:
                names = ", ".join(f"{row.name} ({row.source})" for row in absent)
                raise FileNotFoundError(
                    f"the stage {stage.name} needs {names}, which nobody prepared in {store.url}: "
                    "download it and run jobs/prepare_questions.py"
                )
            task = ray.remote(num_cpus=1, scheduling_strategy="DEFAULT")(_prepare)
            ray.get(task.remote(store, science.prepare_questions, stage, dict(demonstrations)))


def _make_job(
    make_stage_job: Callable[..., Any], stage: Stage, engine: Any, data: LocalDataset, scratch: Path
) -> Any:
    return make_stage_job(stage, engine, data.everything(), scratch)


def _prepare(
    store: Store,
    prepare_questions: Callable[..., Any],
    stage: Stage,
    demonstrations: Mapping[str, str],
) -> None:
    folders = {
        row.name: LocalDataset.of(store, demonstrations[row.source]).everything()
        for row in stage.rows
        if row.of_demonstrations
    }
    prepare_questions(stage, folders, artifacts.dataset_put(store, stage.data))


def _score(
    store: Store,
    cluster: Cluster,
    science: StageScience,
    stage: Stage,
    checkpoint: Checkpoint | None,
) -> Mapping[str, Any]:
    task = ray.remote(
        num_cpus=min(1.0, cluster.cpus_per_worker),
        num_gpus=min(1.0, cluster.gpus_per_worker),
        scheduling_strategy="DEFAULT",
    )(_scored)
    found: Mapping[str, Any] = ray.get(
        task.remote(store, science.score_stage, stage, checkpoint, cluster.precision)
    )
    return found


def _scored(
    store: Store,
    score_stage: Callable[..., Mapping[str, Any]],
    stage: Stage,
    checkpoint: Checkpoint | None,
    precision: str,
) -> Mapping[str, Any]:
    weights: Path | None = None
    if checkpoint is not None:
        weights = artifacts.fetch_policy(store, checkpoint) / artifacts.WEIGHTS
    return score_stage(stage, LocalDataset.of(store, stage.data).everything(), weights, precision)
