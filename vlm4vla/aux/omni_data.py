"""Pictures with depth, class and colour maps to predict, from the files that BridgeVQA writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from vlm4vla.aux.bridge_vqa import MILLIMETRES, NAMES

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
    """The scenes of a folder that `vlm4vla.aux.bridge_vqa.write` wrote, by number.

    classes: the background, then every name of a thing, in alphabetical order; scenes that name
    things alike share their classes. FileNotFoundError for a folder without scenes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = sorted(path.stem for path in folder.glob("scenes/*.jsonl"))
        if not self.names:
            raise FileNotFoundError(
                f"{folder} holds no scenes: write some with vlm4vla.aux.bridge_vqa first"
            )
        things = [self._things(name) for name in self.names]
        self.classes = (BACKGROUND, *sorted({each for names in things for each in names}))
        self._class_of = [
            np.array([self.classes.index(each) for each in (BACKGROUND, *names)])
            for names in things
        ]

    def __len__(self) -> int:
        return len(self.names)

    def images(self, numbers: Sequence[int]) -> UInt8[np.ndarray, "B H W 3"]:
        return np.stack([self._read("images", number) for number in numbers])

    def maps(self, numbers: Sequence[int], size: int) -> Maps:
        """Depth and classes of the pixel in the middle of each cell; colours are averaged."""
        depth = [_nearest(self._read("depth", n), size) / MILLIMETRES for n in numbers]
        classes = [self._class_of[n][_nearest(self._read("segments", n), size)] for n in numbers]
        colours = [_averaged(self._read("images", n), size) for n in numbers]
        return Maps(
            torch.from_numpy(np.stack(depth).astype(np.float32)),
            torch.from_numpy(np.stack(classes).astype(np.int64)),
            torch.from_numpy(np.stack(colours)).permute(0, 3, 1, 2) / 127.5 - 1,
        )

    def _read(self, kind: str, number: int) -> np.ndarray:
        return np.array(Image.open(self.folder / kind / f"{self.names[number]}.png"))

    def _things(self, name: str) -> list[str]:
        return (self.folder / NAMES / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def _nearest(picture: np.ndarray, size: int) -> np.ndarray:
    """Never a mean of two depths or two classes, which nothing in the picture has."""
    rows, columns = (((np.arange(size) + 0.5) * n / size).astype(int) for n in picture.shape)
    return picture[rows[:, None], columns]


def _averaged(picture: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BOX))
