"""Questions about the tabletop that shipped tiny models cannot answer: what laptop stages teach.

They ask as the published data do: RoboPoint for a point, ViCA for a number, Robo2VLM for one of
a few words. Shipped models know where things are, and name places by cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from envs.tabletop import BLOCK_HALF, PIXELS, TABLE, Scene
from vlm4vla.aux.samples import Region
from vlm4vla.aux.tabletop_vqa import Question, random_scene


@dataclass(frozen=True)
class Spot(Question):
    """A question answered by a point of the picture. region: where one counts as right."""

    region: Region


def _spot(rng: np.random.Generator, scene: Scene) -> Spot:
    """A named block's middle, x and y in percent of the picture's sides from its top left.

    In percent the answer's first word says where: what a tiny model has to look up again for a
    later word it learns much more slowly.
    """
    colour = str(rng.choice(scene.colours))
    x, y = (float(v) / TABLE for v in scene.blocks[scene.colours.index(colour)])
    half = BLOCK_HALF / PIXELS
    region = x - half, 1 - y - half, x + half, 1 - y + half
    text = f"at what place is the {colour} block"
    return Spot("spot", text, f"{100 * x:02.0f}, {100 * (1 - y):02.0f}", region)


def _distance(rng: np.random.Generator, scene: Scene) -> Question:
    """Centimetres from the table's left edge to a named block's middle."""
    colour = str(rng.choice(scene.colours))
    metres = scene.blocks[scene.colours.index(colour)][0]
    text = f"how many to the right is the {colour} block"
    return Question("distance", text, str(round(100 * metres)))


def _quarter(rng: np.random.Generator, scene: Scene) -> Question:
    """Which quarter of the table a named block lies in."""
    colour = str(rng.choice(scene.colours))
    x, y = scene.blocks[scene.colours.index(colour)] > TABLE / 2
    answer = f"{'right' if x else 'left'} {'above' if y else 'below'}"
    return Question("quarter", f"where on it is the {colour} block", answer)


LESSONS: Mapping[str, Callable[[np.random.Generator, Scene], Question]] = {
    "spot": _spot,
    "distance": _distance,
    "quarter": _quarter,
}
"""Kind of question -> what asks it; none of `vlm4vla.aux.tabletop_vqa.KINDS`."""


def lessons(kind: str, seed: int) -> Iterator[tuple[Scene, Question]]:
    """Endless scenes with one question each; a function of its arguments alone."""
    rng = np.random.default_rng([3, seed])
    while True:
        scene = random_scene(rng)
        yield scene, LESSONS[kind](rng, scene)
