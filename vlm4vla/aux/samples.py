"""A question about a picture with its answer: what every auxiliary stage trains on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

Image = UInt8[np.ndarray, "H W 3"]
Region = tuple[float, float, float, float]
"""Left, top, right and bottom of a box, as shares of the picture's width and height."""

KINDS = ("point", "number", "choice", "text", "action")
"""What an answer is: places in the picture, a number, one of a few words, free text, or
actions. It decides how answers are scored (`vlm4vla.aux.metrics`)."""


@dataclass(frozen=True)
class Sample:
    """One question about one picture.

    image: the picture, or what loads it when it is wanted. answer: text, or vocabulary ids
    without an end token. kind: one of `KINDS`. regions: where a point counts as right; none
    where the answer's own points say it. where: "file: row" for people. scene: samples of one
    are trained on or held out together; if empty, those of one picture are.
    """

    image: Image | Callable[[], Image]
    question: str
    answer: str | tuple[int, ...]
    kind: str
    regions: tuple[Region, ...] = ()
    where: str = ""
    scene: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Sample.kind: {self.kind!r} is not one of {', '.join(KINDS)}.")

    def picture(self) -> Image:
        """The picture; OSError or ValueError when it cannot be read."""
        return self.image() if callable(self.image) else self.image
