"""Datasets and policy checkpoints in the store, and copies of policies on a node's disk.

datasets/<id>/manifest.json, shard-*.parquet       complete once the manifest is there
policies/<run>/step-00001200/complete.json         makes a checkpoint visible
policies/<run>/step-00001200/<attempt>/policy.safetensors, policy.json
                                                    the attempt's that complete.json names
training/<run>/step-00001200/<attempt>/…            optimiser state; only a resume reads it
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_platform import places
from vla_platform.store import Store

COMPLETE = "complete.json"
MANIFEST = "manifest.json"
WEIGHTS = "policy.safetensors"
DESCRIPTION = "policy.json"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Checkpoint:
    """A policy in the store; `digest` is the sha256 of its weights and its identity.

    evaluated: one that the recipe wants scored, rather than one to resume from alone.
    attempt, state: where the optimiser's files lie, and the sha256 of each by name.
    folder: where below `prefix` weights and description lie: the attempt's, which nobody else
    writes to; "" where they lie there themselves, as imported and older ones do.
    """

    run: str
    step: int
    digest: str
    evaluated: bool = True
    attempt: str = ""
    state: tuple[tuple[str, str], ...] = ()
    folder: str = ""

    @property
    def prefix(self) -> str:
        return checkpoint_prefix(self.run, self.step)

    def key(self, name: str) -> str:
        """Of its weights or its description."""
        return policy_key(self.run, self.step, name, self.folder)

    def __str__(self) -> str:
        return f"policy {self.run} at step {self.step}"


def checkpoint_prefix(run: str, step: int) -> str:
    return f"policies/{run}/step-{step:08d}"


def policy_key(run: str, step: int, name: str, folder: str = "") -> str:
    return "/".join(filter(None, (checkpoint_prefix(run, step), folder, name)))


def state_prefix(run: str, step: int, attempt: str) -> str:
    return f"training/{run}/step-{step:08d}/{attempt}"


def checkpoints(store: Store, run: str) -> list[Checkpoint]:
    """The run's complete checkpoints by step."""
    keys = [key for key in store.list(f"policies/{run}/") if key.endswith(f"/{COMPLETE}")]
    return [_marked(run, key, store.get(key)) for key in keys]


def _marked(run: str, key: str, data: bytes) -> Checkpoint:
    try:
        return _described(run, json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{key} marks no checkpoint ({type(error).__name__}: {error}): train the run again"
        ) from error


def _described(run: str, marker: dict[str, Any]) -> Checkpoint:
    state = marker.get("state", {})
    found = Checkpoint(
        run,
        marker["step"],
        marker["digest"],
        marker.get("evaluated", True),
        marker.get("attempt", ""),
        tuple(sorted(state.items())),
        marker.get("folder", ""),
    )
    kinds = {"step": int, "digest": str, "evaluated": bool, "attempt": str, "folder": str}
    wrong = [name for name, kind in kinds.items() if type(getattr(found, name)) is not kind]
    if wrong or found.step < 0 or not all(isinstance(sha, str) for sha in state.values()):
        raise ValueError(f"wrong are {', '.join(wrong) or 'its step or state'}")
    return found


def publish_policy(store: Store, run: str, step: int, local: Path, folder: str = "") -> None:
    """Upload weights and description; `complete_policy` makes them visible.

    folder: a training's attempt. Two of one run may be at it when a lease was lost, and on GPUs
    their weights differ: neither may replace what the other's marker names.
    """
    for name in (WEIGHTS, DESCRIPTION):
        store.upload(local / name, policy_key(run, step, name, folder))


def complete_policy(
    store: Store,
    run: str,
    step: int,
    digest: str,
    *,
    evaluated: bool = True,
    attempt: str = "",
    state: Mapping[str, str] | None = None,
    folder: str = "",
) -> Checkpoint:
    """Make a published policy visible, and with it the optimiser files that belong to it."""
    marker = {"digest": digest, "step": step, "evaluated": evaluated}
    marker |= {"attempt": attempt, "state": dict(state or {}), "folder": folder}
    store.put(f"{checkpoint_prefix(run, step)}/{COMPLETE}", json.dumps(marker).encode())
    return _described(run, marker)


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_policy(store: Store, checkpoint: Checkpoint) -> Path:
    """A local folder with the policy's weights and description, verified by its digest.

    Open them within `places.RECENT_S`: what is not used may make room for others.
    """
    if not _DIGEST.fullmatch(checkpoint.digest):  # it becomes a folder's name
        raise ValueError(f"{checkpoint.prefix}/{COMPLETE} names no sha256: train the run again")
    folder = places.cache() / "policies" / checkpoint.digest
    with locked(folder):
        for name in (DESCRIPTION, WEIGHTS):
            try:
                os.utime(folder / name)  # used, for `places.trim`
            except FileNotFoundError:
                store.download(checkpoint.key(name), folder / name)
        if file_digest(folder / WEIGHTS) != checkpoint.digest:
            (folder / WEIGHTS).unlink()
            raise ValueError(
                f"{checkpoint.key(WEIGHTS)} does not have the digest its marker names; "
                "it was replaced or damaged: train the run again"
            )
    places.trim({folder / WEIGHTS})
    return folder


def dataset_exists(store: Store, dataset: str) -> bool:
    return store.exists(f"datasets/{dataset}/{MANIFEST}")


def require_dataset(store: Store, dataset: str) -> str:
    """The id, if that dataset is complete; otherwise ValueError with the ids that there are."""
    if dataset_exists(store, dataset):
        return dataset
    found = [child.rstrip("/") for child in store.children("datasets")]
    known = ", ".join(each for each in found if dataset_exists(store, each)) or "none"
    raise ValueError(
        f"dataset {dataset} is not complete in {store.url} (complete there: {known}): prepare it "
        "with jobs/prepare_data.py"
    )


def published_dataset(store: Store, name: str) -> str | None:
    """Id of the complete dataset prepared under a name (`NAME-hash`), None when there is none.

    ValueError when there are several, as after preparing once as PNG and once as JPEG.
    """
    folders = [child.rstrip("/") for child in store.children("datasets")]
    named = [each for each in folders if each.rpartition("-")[0] == name and name]
    found = [each for each in named if dataset_exists(store, each)]
    if len(found) > 1:
        raise ValueError(
            f"{', '.join(found)} in {store.url} are all prepared {name}: pass --dataset ID with "
            "the one to train on"
        )
    return found[0] if found else None


def dataset_put(store: Store, dataset: str) -> Callable[[str, bytes], None]:
    """The `put(name, bytes)` that writes one dataset; its manifest must come last."""
    return lambda name, data: store.put(f"datasets/{dataset}/{name}", data)


@contextmanager
def locked(folder: Path, name: str = "") -> Iterator[None]:
    """One process of a node fills a folder, or its file `name`, while the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
