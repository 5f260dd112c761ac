"""Pictures with depth, class and colour maps to predict, and how well that was done."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from vlm4vla.aux.bridge_vqa import MILLIMETRES
from vlm4vla.aux.drawings import SCHEMA
from vlm4vla.aux.questions import Manifest
from vlm4vla.data.dataset import MANIFEST, read_shard
from vlm4vla.data.frames import Resize

BACKGROUND = "background"


@dataclass(frozen=True)
class Maps:
    """What a decoder predicts of each picture, at its own size.

    depth: metres. classes: numbers of a `Scenes.classes`. colours: red, green, blue, -1 to 1.
    """

    depth: Float[Tensor, "B S S"]
    classes: Int[Tensor, "B S S"]
    colours: Float[Tensor, "B 3 S S"]


class Scenes:
    """A stage's scenes to draw, by number.

    classes: the background, then every name of a thing, in alphabetical order; scenes that name
    things alike share their classes. trained, held_out: numbers; every eighth is held out.
    """

    def __init__(self, folder: Path) -> None:
        shards = Manifest.from_bytes((folder / MANIFEST).read_bytes()).drawings
        if not shards:
            raise ValueError(f"{folder} holds no scenes to draw: prepare a stage that draws")
        self.table = pa.concat_tables(read_shard(folder, shard, SCHEMA) for shard in shards)
        things: list[list[str]] = self.table["things"].to_pylist()
        self.classes = (BACKGROUND, *sorted({each for names in things for each in names}))
        self._class_of = [
            np.array([self.classes.index(each) for each in (BACKGROUND, *names)])
            for names in things
        ]
        numbers = np.arange(len(self))
        self.trained, self.held_out = numbers[numbers % 8 != 7], numbers[7::8]

    def __len__(self) -> int:
        return len(self.table)

    def images(self, numbers: Iterable[int], resize: Resize) -> UInt8[np.ndarray, "B S S 3"]:
        """Pictures, which may differ in size, as `resize` makes them."""
        return np.concatenate([resize(self._read("image", number)[None]) for number in numbers])

    def maps(self, numbers: Iterable[int], size: int) -> Maps:
        """Depth and classes of the pixel in the middle of each cell; colours are averaged."""
        depth = [_nearest(self._read("depth", n), size) / MILLIMETRES for n in numbers]
        classes = [self._class_of[n][_nearest(self._read("segments", n), size)] for n in numbers]
        colours = [_averaged(self._read("image", n), size) for n in numbers]
        return Maps(
            torch.from_numpy(np.stack(depth).astype(np.float32)),
            torch.from_numpy(np.stack(classes).astype(np.int64)),
            torch.from_numpy(np.stack(colours)).permute(0, 3, 1, 2) / 127.5 - 1,
        )

    def _read(self, kind: str, number: int) -> np.ndarray:
        return np.array(Image.open(io.BytesIO(self.table[kind][int(number)].as_py())))


def _nearest(picture: np.ndarray, size: int) -> np.ndarray:
    """Never a mean of two depths or two classes, which nothing in the picture has."""
    rows, columns = (((np.arange(size) + 0.5) * n / size).astype(int) for n in picture.shape)
    return picture[rows[:, None], columns]


def _averaged(picture: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BOX))


def joined(parts: Sequence[Maps]) -> Maps:
    """Batches of maps as one, in host memory."""
    together = ("depth", "classes", "colours")
    return Maps(*(torch.cat([getattr(part, name).cpu() for part in parts]) for name in together))


def scores(found: Maps, wanted: Maps) -> dict[str, float]:
    """Of depth and colours what `explained` says; of classes the mean intersection over union."""
    return {
        "depth": explained(found.depth, wanted.depth),
        "classes": overlap(found.classes, wanted.classes),
        "colours": explained(found.colours, wanted.colours),
    }


def explained(found: Tensor, wanted: Tensor) -> float:
    """Share of the error of saying the median everywhere that a prediction does not make."""
    least = (wanted - wanted.median()).abs().sum()
    return max(0.0, 1 - float((found - wanted).abs().sum() / least))


def overlap(found: Int[Tensor, "B S S"], wanted: Int[Tensor, "B S S"]) -> float:
    """Mean over the classes that occur of intersection over union."""
    shares = []
    for each in wanted.unique().tolist():
        ours, theirs = found == each, wanted == each
        shares.append(float((ours & theirs).sum() / (ours | theirs).sum()))
    return sum(shares) / len(shares)
