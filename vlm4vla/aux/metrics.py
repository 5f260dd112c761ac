"""How an answer is scored: 0 to 1 each, by what kind of answer it is (paper 4.2).

Points by the share of them inside the asked region (RoboPoint), numbers by mean relative
accuracy (VSI-Bench), choices by exact match. Pure functions of texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from vlm4vla.aux.samples import Region

THRESHOLDS = tuple(0.5 + 0.05 * i for i in range(10))
"""Confidences 0.5, 0.55 .. 0.95 over which relative accuracy is averaged (arXiv 2412.14171)."""
LEAST = 0.1
"""Side, as a share of the picture's, of the smallest region that true points alone span."""
_NUMBER = r"-?\d+(?:\.\d+)?"
_PAIR = re.compile(rf"({_NUMBER}),({_NUMBER})")


def points(text: str) -> list[tuple[float, float]]:
    """Every `x, y` of a text, whose tokens a decoder may have spread by blanks.

    As shares of the picture's sides; a text with a coordinate above 1 is in percent.
    """
    found = [(float(x), float(y)) for x, y in _PAIR.findall(re.sub(r"\s", "", text))]
    unit = 100 if any(max(pair) > 1 for pair in found) else 1
    return [(x / unit, y / unit) for x, y in found]


def in_region(said: str, truth: str, regions: Sequence[Region] = ()) -> float:
    """Share of the said points that lie in a region; without any, in the box of the true points.

    No point scores 0.
    """
    boxes = regions or _boxes(points(truth))
    found = points(said)
    return sum(any(_inside(p, box) for box in boxes) for p in found) / max(1, len(found))


def _inside(point: tuple[float, float], box: Region) -> bool:
    (x, y), (left, top, right, bottom) = point, box
    return left <= x <= right and top <= y <= bottom


def _boxes(true: Sequence[tuple[float, float]]) -> list[Region]:
    """Around the true points, at least `LEAST` wide and high."""
    if not true:
        return []
    xs, ys = zip(*true, strict=True)
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    wide, high = (max(0.0, LEAST - size) / 2 for size in (right - left, bottom - top))
    return [(left - wide, top - high, right + wide, bottom + high)]


def relative_accuracy(said: str, truth: str, regions: Sequence[Region] = ()) -> float:
    """Share of the thresholds t at which the error is under (1 - t) of the true number."""
    right, found = number(truth), number(said)
    if right is None or found is None:
        return 0.0
    if right == 0:
        return float(found == 0)
    error = abs(found - right) / abs(right)
    # A rounding's width, so that 0.9 of 10 counts as off by a tenth and no more.
    return sum(error < 1 - t - 1e-9 for t in THRESHOLDS) / len(THRESHOLDS)


def number(text: str) -> float | None:
    """The first number of a text; None when it has none."""
    found = re.search(_NUMBER, re.sub(r"(?<=[\d.])\s+(?=[\d.])", "", text))
    return float(found.group()) if found else None


def exact(said: str, truth: str, regions: Sequence[Region] = ()) -> float:
    """1 when both say the same, but for case, blanks and a full stop; letters of options count."""
    return float(_plain(said) == _plain(truth))


def _plain(text: str) -> str:
    text = " ".join(text.lower().split()).rstrip(". ")
    letter = re.match(r"\(?([a-z])[.)](\s|$)", text)
    return letter.group(1) if letter else text


METRICS: Mapping[str, Callable[[str, str, Sequence[Region]], float]] = {
    "point": in_region,
    "number": relative_accuracy,
    "choice": exact,
    "text": exact,
    "action": exact,
}
"""Kind of sample -> what scores (said, truth, regions)."""
