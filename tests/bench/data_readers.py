"""Readers that bench_data.py compares, each in a process of its own in our environment.

data_readers.py NAME FOLDER BATCH     take turns, see data_turns.py
data_readers.py memory FOLDER BATCH   one epoch of frames that stay encoded; memory on the way

ours: `vlm4vla.batches` as a training uses it, but for the model's own preparation of a batch.
npz, hdf5: what a tutorial writes: PyTorch's DataLoader over the published files, opened as rarely
and read as little as they allow.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from data_turns import serve
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Items

from envs.benchmarks import benchmark
from vlm4vla.batches import Batches
from vlm4vla.data import augment
from vlm4vla.data.dataset import KEEP_DECODED, Dataset
from vlm4vla.data.normalise import Normaliser
from vlm4vla.run import Run

ROW = benchmark("calvin")
PX = 224
WORKERS, AHEAD = 2, 2


class Collated:
    """What a policy does with a batch, without a model: tensors of it."""

    def prepare(self, images: np.ndarray, texts: list[str]) -> dict[str, torch.Tensor]:
        return {"images": torch.from_numpy(images), "attention_mask": torch.ones(len(texts), 1)}

    def draws(self, keys: Any) -> dict[str, torch.Tensor]:
        return {}


def feed(folder: Path, batch: int, keep: int) -> Batches:
    run = Run("tiny-paligemma-1", ROW.name, batch=batch).resolved(ROW.recipe)
    data = Dataset(folder, PX, lambda images: images, keep=keep)
    normaliser = Normaliser(ROW.recipe.normalisation, data.manifest.statistics)
    return Batches(run, ROW, data, Collated(), normaliser, 0, 1, 1)  # type: ignore[arg-type]


def encoded(folder: Path, batch: int) -> None:
    serve(feed(folder, batch, 0).steps(0, sys.maxsize), batch, 1)


def decoded(folder: Path, batch: int) -> None:
    serve(feed(folder, batch, KEEP_DECODED).steps(0, sys.maxsize), batch, 1)


class Files(Items):
    """Windows of published episodes: (image, actions [k, 7], mask [k])."""

    def __init__(self, lengths: list[int]) -> None:
        self.rng = np.random.default_rng()
        self.places = [(e, t) for e, steps in enumerate(lengths) for t in range(steps)]
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        episode, step = self.places[index]
        last = min(step + ROW.chunk, self.lengths[episode])
        image, actions = self.read(episode, step, last)
        mask = np.arange(ROW.chunk) < last - step
        actions = np.pad(actions, ((0, ROW.chunk - len(actions)), (0, 0)), mode="edge")
        image, actions = augment.apply(ROW.recipe.augmentation, image, actions, self.rng)
        return np.ascontiguousarray(image), actions.astype(np.float32), mask

    def read(self, episode: int, step: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError


class Npz(Files):
    """CALVIN's layout: a file a time step, of which only what is wanted is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(json.loads((folder / "lengths.json").read_text()))
        self.firsts = np.cumsum([0, *self.lengths])

    def read(self, episode: int, step: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        moves = []
        for time in range(step, last):
            path = self.folder / f"episode_{self.firsts[episode] + time:07d}.npz"
            with np.load(path) as data:
                if time == step:
                    image = data["rgb_static"]
                moves.append(data["rel_actions"])
        return image, np.stack(moves)


class Hdf5(Files):
    """LIBERO's layout: a file a task, opened once by each worker."""

    def __init__(self, folder: Path) -> None:
        self.path = next(folder.glob("*.hdf5"))
        with h5py.File(self.path) as file:
            super().__init__(
                [len(file[f"data/demo_{i}/actions"]) for i in range(len(file["data"]))]
            )

    @cached_property
    def file(self) -> h5py.File:
        return h5py.File(self.path)

    def read(self, episode: int, step: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        demo = self.file[f"data/demo_{episode}"]
        return demo["obs/agentview_rgb"][step][::-1, ::-1], demo["actions"][step:last]


def loaded(items: Files, batch: int) -> None:
    loader: DataLoader = DataLoader(
        items,
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
        prefetch_factor=AHEAD,
        persistent_workers=True,
    )
    serve(_endless(loader), batch, WORKERS * AHEAD)


def _endless(loader: DataLoader) -> Iterator[Any]:
    while True:
        yield from loader


def memory(folder: Path, batch: int) -> None:
    """MB that the process has for itself, ten times over an epoch."""
    batches = feed(folder, batch, 0)
    steps = len(batches.data) // batch
    told = []
    for step, _ in batches.steps(0, steps):
        if step % max(1, steps // 10) == 0:
            told.append(round(_own_mb(), 1))
    print(json.dumps(told))


def _own_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon"))


READERS = {
    "encoded": encoded,
    "decoded": decoded,
    "npz": lambda folder, batch: loaded(Npz(folder), batch),
    "hdf5": lambda folder, batch: loaded(Hdf5(folder), batch),
    "memory": memory,
}

if __name__ == "__main__":
    READERS[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
