"""Prepare a dataset over the cluster, a shard per Ray task; resumes by shard.

Plain tasks: Ray Data would run the same ones, and rewrites the errors that must name file and row.

preparing/<dataset>/shard-00000.note      a finished shard's note
datasets/<dataset>/shard-00000.parquet    the shard, put before its note
datasets/<dataset>/manifest.json          put last: nothing is visible before
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import RayTaskError

from vla_platform import artifacts
from vla_platform.store import Store

T = TypeVar("T")
MEMORY = 2 * 1024**3
"""What one shard may need: its encoded frames twice and one episode's decoded ones."""


class Preparation(Protocol):
    """What is prepared: shards 0..shards-1, each a pure function of its number."""

    @property
    def id(self) -> str: ...

    @property
    def shards(self) -> int: ...

    def shard(self, number: int) -> tuple[bytes, bytes]:
        """The shard's bytes (empty for none) and its note; ValueError names what is wrong."""
        ...

    def manifest(self, notes: Sequence[bytes]) -> Any:
        """From all notes in order; its `to_bytes` is what the store gets."""
        ...


def prepare(store: Store, work: Preparation, progress: Callable[[int, int], None]) -> Any:
    """Make every shard that is not there yet, then the manifest, which is returned.

    progress: (shards done, shards in all). The first bad shard ends it with its own error.
    """
    total, shared = work.shards, ray.put(work)
    task = ray.remote(num_cpus=1, memory=MEMORY, max_retries=3)(make_shard)
    flying = [task.remote(store, work.id, shared, number) for number in range(total)]
    for done, _ in enumerate(results(flying), 1):
        progress(done, total)
    manifest = work.manifest([store.get(note_key(work.id, number)) for number in range(total)])
    artifacts.dataset_put(store, work.id)(artifacts.MANIFEST, manifest.to_bytes())
    return manifest


def results(flying: Sequence[ObjectRef[T]]) -> Iterator[T]:
    """What the tasks return, as they end; the first that fails ends it with its own error.

    Whatever ends it early, the tasks that wait for a core are called off.
    """
    left = list(flying)
    try:
        while left:
            [done], left = ray.wait(left)
            yield ray.get(done)
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None
    finally:
        for waiting in left:
            ray.cancel(waiting, force=False)


def make_shard(store: Store, dataset: str, work: Preparation, number: int) -> None:
    """One shard; its note is put last, so a repeated task finds finished work."""
    if store.exists(note_key(dataset, number)):
        return
    data, note = work.shard(number)
    if data:
        artifacts.dataset_put(store, dataset)(f"shard-{number:05d}.parquet", data)
    store.put(note_key(dataset, number), note)


def note_key(dataset: str, number: int) -> str:
    return f"preparing/{dataset}/shard-{number:05d}.note"
