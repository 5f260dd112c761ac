"""Questions about where two things are and how large, with answers from exact geometry.

They are those of BridgeVQA (4.2, A.6): left or right, above or below, nearer or farther, size
and distance. A pair is asked about only where the answer is clear by a margin.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from envs.api import Camera, Thing


@dataclass(frozen=True)
class Margins:
    """By how much two things must differ before they are compared.

    side, row: shares of the picture's width and height. height, depth: metres. size: ratio of
    volumes. share: of the picture that a thing must cover. largest: side of a thing, metres,
    beyond which its middle says little about where it is.
    """

    side: float = 0.06
    row: float = 0.03
    height: float = 0.03
    depth: float = 0.05
    size: float = 1.5
    share: float = 0.001
    largest: float = 0.5


@dataclass(frozen=True)
class Placed:
    """A thing with the place of its middle in the picture: shares from left and top, metres."""

    thing: Thing
    column: float
    row: float
    depth: float


@dataclass(frozen=True)
class Question:
    """relation: key of `RELATIONS`, or "distance", whose answer is a number."""

    relation: str
    text: str
    answer: str


T = TypeVar("T")
Verdict = Callable[[Placed, Placed, Margins], float]
"""Positive where the first is more, negative where it is less, 0 where that is not clear."""


@dataclass(frozen=True)
class Relation:
    """verdict, and the words for more and for less: of one of two, and between two."""

    verdict: Verdict
    which: tuple[str, str]
    between: tuple[str, str]


def _clear(difference: float, margin: float) -> float:
    return difference if abs(difference) > margin else 0.0


def _left(a: Placed, b: Placed, margins: Margins) -> float:
    return _clear(b.column - a.column, margins.side)


def _above(a: Placed, b: Placed, margins: Margins) -> float:
    """In the room and in the picture, which looks down and shows far things higher up."""
    height = _clear(float(a.thing.centre[2] - b.thing.centre[2]), margins.height)
    row = _clear(b.row - a.row, margins.row)
    return height if height * row > 0 else 0.0


def _near(a: Placed, b: Placed, margins: Margins) -> float:
    return _clear(b.depth - a.depth, margins.depth)


def _big(a: Placed, b: Placed, margins: Margins) -> float:
    """By volume, and by the longest side too: a long thin thing is neither bigger nor smaller."""
    volume = _clear(_log_ratio(np.prod(a.thing.extent), np.prod(b.thing.extent)), _log(margins))
    side = _log_ratio(a.thing.extent.max(), b.thing.extent.max())
    return volume if volume * side > 0 else 0.0


def _log_ratio(a: float, b: float) -> float:
    return float(np.log(max(a, 1e-12) / max(b, 1e-12)))


def _log(margins: Margins) -> float:
    return float(np.log(margins.size))


RELATIONS: Mapping[str, Relation] = {
    "side": Relation(
        _left,
        ("more to the left", "more to the right"),
        ("to the left of", "to the right of"),
    ),
    "height": Relation(_above, ("higher up", "lower down"), ("above", "below")),
    "depth": Relation(
        _near,
        ("nearer to the camera", "farther from the camera"),
        ("in front of", "behind"),
    ),
    "size": Relation(_big, ("bigger", "smaller"), ("bigger than", "smaller than")),
}


def project(points: Float[np.ndarray, "n 3"], camera: Camera) -> Float[np.ndarray, "n 3"]:
    """World points, metres, to column and row in pixels and depth along the axis in metres."""
    local = (points - camera.pose[:3, 3]) @ camera.pose[:3, :3]
    scale = camera.focal / local[:, 2]
    middle = camera.width / 2, camera.height / 2
    return np.column_stack(
        [local[:, 0] * scale + middle[0], local[:, 1] * scale + middle[1], local[:, 2]]
    )


def back_project(depth: Float[np.ndarray, "H W"], camera: Camera) -> Float[np.ndarray, "H W 3"]:
    """World points, metres, that a picture's pixels show; the inverse of `project`."""
    rows, columns = np.indices(depth.shape) + 0.5
    right = (columns - camera.width / 2) / camera.focal * depth
    down = (rows - camera.height / 2) / camera.focal * depth
    local = np.stack([right, down, depth], axis=-1)
    return local @ camera.pose[:3, :3].T + camera.pose[:3, 3]


def askable(things: Sequence[Thing], camera: Camera, margins: Margins) -> list[Placed]:
    """Things whose name is theirs alone, that are seen, and whose middle is in the picture."""
    times = Counter(thing.name for thing in things)
    least = margins.share * camera.width * camera.height
    clear = [
        thing
        for thing in things
        if times[thing.name] == 1
        and thing.pixels >= least
        and thing.extent.max() <= margins.largest
    ]
    placed = [_placed(thing, camera) for thing in clear]
    return [p for p in placed if 0 < p.column < 1 and 0 < p.row < 1 and p.depth > 0]


def _placed(thing: Thing, camera: Camera) -> Placed:
    column, row, depth = project(thing.centre[None], camera)[0]
    return Placed(thing, column / camera.width, row / camera.height, float(depth))


def questions(
    things: Sequence[Thing],
    camera: Camera,
    rng: np.random.Generator,
    count: int | None = None,
    margins: Margins | None = None,
) -> list[Question]:
    """At most `count` questions (None: all) about pairs of things, in random order and wording.

    Of each pair and relation one question is asked, if its answer is clear.
    """
    margins = margins or Margins()
    asked: list[Question] = []
    for pair in itertools.combinations(askable(things, camera, margins), 2):
        for name in (*RELATIONS, "distance"):
            a, b = _shuffled(rng, pair)
            asked += _ask(name, a, b, rng, margins)
    return _shuffled(rng, asked)[:count]


def _ask(
    name: str, a: Placed, b: Placed, rng: np.random.Generator, margins: Margins
) -> list[Question]:
    if name == "distance":
        return [_distance(a.thing, b.thing)]
    relation = RELATIONS[name]
    verdict = relation.verdict(a, b, margins)
    if not verdict:
        return []
    less = int(rng.integers(2))
    first = (verdict > 0) != bool(less)
    if rng.random() < 0.5:
        text = f"Is the {a.thing.name} {relation.between[less]} the {b.thing.name}?"
        return [Question(name, text, "Yes" if first else "No")]
    which = relation.which[less]
    text = f"Which is {which}, the {a.thing.name} or the {b.thing.name}?"
    found = (a if first else b).thing.name
    return [Question(name, text, f"The {found} is {which}.")]


def _distance(a: Thing, b: Thing) -> Question:
    """Between their middles, to the centimetre."""
    metres = float(np.linalg.norm(a.centre - b.centre))
    text = f"How many centimetres are the middles of the {a.name} and the {b.name} apart?"
    return Question("distance", text, str(round(100 * metres)))


def _shuffled(rng: np.random.Generator, values: Sequence[T]) -> list[T]:
    return [values[i] for i in rng.permutation(len(values))]
