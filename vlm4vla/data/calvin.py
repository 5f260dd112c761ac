"""CALVIN as published: one .npz per time step and one annotation file per split.

Layout (github.com/mees/calvin, dataset/README.md): `task_ABC_D/training/` (scenes A, B, C) and
`task_ABC_D/validation/` (scene D) hold `episode_0000001.npz`, … with `rgb_static` uint8
[200, 200, 3] and `rel_actions` float64 [7], and `lang_annotations/auto_lang_ann.npy`, a pickled
dict: `["language"]["ann"]` instructions, `["info"]["indx"]` (first, last) time steps, both
included. Relative actions are in units of 0.02 m and 0.05 rad; the gripper closes at -1.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from envs.api import Demonstration
from vlm4vla.data.dataset import sha256
from vlm4vla.data.source import BadEpisodeError, Entry, Source, demonstration

ANNOTATION = Path("lang_annotations", "auto_lang_ann.npy")

_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _NumpyOnly(pickle.Unpickler):
    """The annotation is published pickled; arrays and plain containers are all it may hold."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("numpy._core", "numpy.core"), name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it wants to run {module}.{name}, which is not allowed")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


class Calvin(Source):
    """folder: `task_ABC_D` (its `split` is read) or a split's own folder."""

    def __init__(self, folder: Path, split: str = "training") -> None:
        inner = folder / split
        self.folder = inner if inner.is_dir() else folder
        stretches = _annotations(self.folder / ANNOTATION)
        # Other scenes may be annotated at the same steps; the file's bytes tell them apart.
        self.variant = sha256((self.folder / ANNOTATION).read_bytes())
        self.entries = [
            Entry(f"{self.folder / ANNOTATION}: row {row}", f"{first}-{last} {text}", (span, text))
            for row, (span, text) in enumerate(stretches)
            for first, last in [span]
        ]

    def load(self, entry: Entry) -> Demonstration:
        (first, last), text = entry.ref
        if not 0 <= first <= last:
            raise BadEpisodeError(entry.where, f"time steps {first} to {last} are not a range")
        steps = [self._step(step, entry.where) for step in range(first, last + 1)]
        images, actions = zip(*steps, strict=True)
        return demonstration(text, np.stack(images), np.stack(actions))

    def _step(self, step: int, where: str) -> tuple[np.ndarray, np.ndarray]:
        path = self.folder / f"episode_{step:07d}.npz"
        if not path.exists():
            raise BadEpisodeError(where, f"frame index {step} is out of range: no {path.name}")
        try:
            with np.load(path, allow_pickle=False) as data:
                return data["rgb_static"], data["rel_actions"]
        except KeyError as error:
            raise BadEpisodeError(f"{path}", f"no array {error.args[0]}") from error
        except (zipfile.BadZipFile, EOFError, ValueError) as error:
            raise BadEpisodeError(f"{path}", f"damaged or truncated ({error})") from error


def _annotations(path: Path) -> list[tuple[tuple[int, int], str]]:
    """((first, last) time step, instruction) of every annotated stretch."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: no instructions without the annotation")
    content = _load_annotation(path)
    try:
        texts, spans = content["language"]["ann"], content["info"]["indx"]
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path}: no language/ann and info/indx in it") from error
    if len(texts) != len(spans):
        raise ValueError(f"{path}: {len(texts)} instructions for {len(spans)} stretches")
    return [
        ((int(first), int(last)), str(text))
        for (first, last), text in zip(spans, texts, strict=True)
    ]


def _load_annotation(path: Path) -> Mapping[str, Any]:
    with path.open("rb") as file:
        try:
            _skip_header(file)
            return _NumpyOnly(file, encoding="latin1").load().item()
        except (pickle.UnpicklingError, EOFError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error


def _skip_header(file: IO[bytes]) -> None:
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    _, _, dtype = readers[npy.read_magic(file)](file)
    if not dtype.hasobject:
        raise ValueError(f"it holds {dtype}, not the pickled dict that CALVIN publishes")
