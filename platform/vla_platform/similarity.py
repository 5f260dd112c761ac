"""How alike policies and vision-language models are, measured once and kept in the store.

similarity/<run>/<reference>/step-00000500.parquet     a row per layer; see `Compare`
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from vla_platform import artifacts, stages
from vla_platform.artifacts import Checkpoint
from vla_platform.cluster import Cluster
from vla_platform.local import LocalDataset
from vla_platform.store import Store

VLM = "vlm"
"""The reference that every run has: its backbone as published."""
Row = dict[str, Any]
Compare = Callable[
    [Mapping[int, Path], Path, Mapping[str, Path | None], int],
    Iterable[tuple[str, int, list[Row]]],
]
"""(policies by step, dataset, references, frames) to (reference, step, rows):
`vlm4vla.similarity.compare`."""


def runs(store: Store) -> list[str]:
    """Those with policies at two steps or more, for one tells nothing of a training."""
    keys = list(store.list("policies/"))
    names = [key.split("/")[1] for key in keys if key.endswith(f"/{artifacts.COMPLETE}")]
    staged = {key.split("/")[1] for key in keys if key.endswith("/stage.json")}
    return sorted({name for name in names if names.count(name) > 1} - staged)


def ensure(store: Store, cluster: Cluster, compare: Compare, run: str, frames: int) -> list[Row]:
    """Every row of the run, measured unless the store has it over as many frames.

    References are the published backbone and every finished stage of it. ValueError for a run
    without checkpoints.
    """
    found = artifacts.checkpoints(store, run)
    if not found:
        raise ValueError(f"{store.url} has no checkpoint of a run {run!r}")
    told = json.loads(store.get(found[0].key(artifacts.DESCRIPTION)))["run"]
    left = {
        name: stage
        for name, stage in _references(store, told["backbone"]).items()
        if any(not _measured(store, _key(run, name, each.step), frames) for each in found)
    }
    if left:
        dataset = told["dataset"]
        task = ray.remote(
            num_cpus=min(1.0, cluster.cpus_per_worker),
            num_gpus=min(1.0, cluster.gpus_per_worker),
        )(_compare)
        ray.get(task.remote(store, compare, found, dataset, left, frames))
    return rows(store, run)


def _measured(store: Store, key: str, frames: int) -> bool:
    try:
        table = pq.read_table(io.BytesIO(store.get(key))).to_pylist()
    except KeyError:
        return False
    return all(row.get("frames") == frames for row in table)


def _references(store: Store, backbone: str) -> dict[str, Checkpoint | None]:
    """The published model, and the last checkpoint of each finished stage of this backbone."""
    keys = [key for key in store.list("policies/") if key.endswith("/stage.json")]
    told = {name: stages.record(store, name) or {} for name in (key.split("/")[1] for key in keys)}
    mine = [name for name, record in told.items() if record["stage"]["backbone"] == backbone]
    return {VLM: None, **{name: artifacts.checkpoints(store, name)[-1] for name in mine}}


def _compare(
    store: Store,
    compare: Compare,
    found: list[Checkpoint],
    dataset: str,
    references: Mapping[str, Checkpoint | None],
    frames: int,
) -> None:
    policies = {each.step: artifacts.fetch_policy(store, each) for each in found}
    files = {
        name: artifacts.fetch_policy(store, stage) / artifacts.WEIGHTS if stage else None
        for name, stage in references.items()
    }
    local = LocalDataset.of(store, dataset).everything()
    for name, step, measured in compare(policies, local, files, frames):
        sink = io.BytesIO()
        table = [{**row, "frames": frames, "dataset": dataset} for row in measured]
        pq.write_table(pa.Table.from_pylist(table), sink)
        store.put(_key(found[0].run, name, step), sink.getvalue())


def rows(store: Store, run: str) -> list[Row]:
    """What is known of a run: reference and step beside each stored row."""
    known = []
    for key in store.list(f"similarity/{run}/"):
        _, _, reference, name = key.split("/")
        step = int(name.removeprefix("step-").removesuffix(".parquet"))
        table = pq.read_table(io.BytesIO(store.get(key))).to_pylist()
        known += [{"run": run, "reference": reference, "step": step, **row} for row in table]
    return known


def _key(run: str, reference: str, step: int) -> str:
    return f"similarity/{run}/{reference}/step-{step:08d}.parquet"
