"""Datasets of the store on a node's disk, file by file as they are asked for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from vla_platform import places
from vla_platform.artifacts import MANIFEST, locked
from vla_platform.store import Store


@dataclass(frozen=True)
class LocalDataset:
    """One complete dataset. folder: its manifest is there; other files come when asked for."""

    store: Store
    dataset: str
    folder: Path

    @staticmethod
    def of(store: Store, dataset: str) -> LocalDataset:
        """ValueError when it is not in the store.

        The folder is named by the manifest too: published datasets have one id in every store,
        and need not have been prepared alike.
        """
        try:
            manifest = store.get(f"datasets/{dataset}/{MANIFEST}")
        except KeyError:
            raise ValueError(f"dataset {dataset} is not complete in {store.url}") from None
        digest = hashlib.sha256(manifest).hexdigest()[:12]
        folder = places.cache() / "datasets" / f"{dataset}-{digest}"
        with locked(folder):
            if not (folder / MANIFEST).exists():
                store.download(f"datasets/{dataset}/{MANIFEST}", folder / MANIFEST)
        return LocalDataset(store, dataset, folder)

    def fetch(self, name: str) -> None:
        """Put one file into the folder if it is not there; others may have to go for it."""
        if self._get(name):
            places.trim({self.folder / name})

    def everything(self) -> Path:
        """The folder with every file of the dataset."""
        names = [key.split("/")[-1] for key in self.store.list(f"datasets/{self.dataset}/")]
        if [name for name in names if self._get(name)]:
            places.trim({self.folder / name for name in names})
        return self.folder

    def _get(self, name: str) -> bool:
        """Whether it had to be fetched."""
        with locked(self.folder):
            if (self.folder / name).exists():
                return False
            self.store.download(f"datasets/{self.dataset}/{name}", self.folder / name)
            return True
