"""Datasets of the store on a node's disk, up to a limit: what was used longest ago goes first.

A file that is deleted while a process has it mapped stays readable there, so nobody is asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from vla_platform import places
from vla_platform.artifacts import MANIFEST, locked
from vla_platform.store import Store

KEPT = (".lock", ".part")
"""Endings of files that are never deleted: locks, and what is being made just now."""


@dataclass(frozen=True)
class LocalDataset:
    """One complete dataset. folder: its manifest is there; other files come when asked for."""

    store: Store
    dataset: str
    folder: Path

    @staticmethod
    def of(store: Store, dataset: str) -> LocalDataset:
        """KeyError when it is not in the store.

        The folder is named by the manifest too: published datasets have one id in every store,
        and need not have been prepared alike.
        """
        try:
            manifest = store.get(f"datasets/{dataset}/{MANIFEST}")
        except KeyError:
            raise KeyError(f"dataset {dataset} is not complete in {store.url}") from None
        digest = hashlib.sha256(manifest).hexdigest()[:12]
        folder = _root() / f"{dataset}-{digest}"
        with locked(folder):
            if not (folder / MANIFEST).exists():
                store.download(f"datasets/{dataset}/{MANIFEST}", folder / MANIFEST)
        return LocalDataset(store, dataset, folder)

    def fetch(self, name: str) -> None:
        """Put one file into the folder if it is not there; others may have to go for it."""
        if self._get(name):
            trim(_root(), places.cache_limit(), {self.folder / name})

    def everything(self) -> Path:
        """The folder with every file of the dataset."""
        names = [key.split("/")[-1] for key in self.store.list(f"datasets/{self.dataset}/")]
        if [name for name in names if self._get(name)]:
            trim(_root(), places.cache_limit(), {self.folder / name for name in names})
        return self.folder

    def _get(self, name: str) -> bool:
        """Whether it had to be fetched."""
        with locked(self.folder):
            if (self.folder / name).exists():
                return False
            self.store.download(f"datasets/{self.dataset}/{name}", self.folder / name)
            return True


def trim(root: Path, limit: int, spared: Collection[Path]) -> None:
    """Delete files under `root`, the longest unused first, until `limit` bytes are left.

    Manifests are too small to matter, and a folder without one is fetched anew.
    """
    found = []
    for path in root.rglob("*"):
        try:
            about = path.stat()
        except FileNotFoundError:  # another process trims too
            continue
        if path.is_file() and path.suffix not in KEPT and path.name != MANIFEST:
            found.append((about.st_mtime, about.st_size, path))
    held = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if held <= limit:
            return
        if path not in spared:
            path.unlink(missing_ok=True)
            held -= size


def _root() -> Path:
    return places.cache() / "datasets"
