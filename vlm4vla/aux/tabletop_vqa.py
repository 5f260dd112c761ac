"""Questions about pictures of the tabletop, with their answers: what tiny models learn from.

Places are cells of an 8 x 8 grid over the picture, numbered row by row from the top left and
spelled `<cell00>` .. `<cell63>`; one cell is 5 cm of the table. No question is about actions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from envs.tabletop import COLOURS, HEIGHT, TABLE, TRAY_DEPTH, Scene
from vlm4vla.tokenizers import TINY_WORDS

GRID = 8
LINES = (-0.15, -0.08, -0.03, 0.0, 0.03, 0.08, 0.15)
"""Inner lines, metres, of the 8 x 8 grid that is centred on the gripper."""
STOREY = 0.02
"""Metres of height per unit in answers about it."""
NEAR = 0.015
"""Metres within which the gripper and a block count as level."""
SPACING = 0.085
"""Metres between the centres of two blocks, as in the benchmark's own scenes."""
MARGIN = 0.01
"""Metres by which a block must lie on one side before a yes/no question is asked about it."""


@dataclass(frozen=True)
class Question:
    """kind: key of `KINDS`. text, answer: in the words of the tiny vocabulary."""

    kind: str
    text: str
    answer: str


def cell(point: np.ndarray) -> str:
    """Name of the cell over a table position (x, y) in metres; y grows away from the robot."""
    from_left_and_top = point[0], TABLE - point[1]
    column, row = (int(np.clip(v / TABLE * GRID, 0, GRID - 1)) for v in from_left_and_top)
    return _cell(row, column)


def cell_around(offset: np.ndarray) -> str:
    """Name of the cell over an offset (x, y) in metres, on a grid with the gripper in its middle.

    Its lines are finer near the gripper (`LINES`): there a centimetre matters.
    """
    column, row = (int(np.searchsorted(LINES, v)) for v in (offset[0], -offset[1]))
    return _cell(row, column)


def _cell(row: int, column: int) -> str:
    return f"<cell{row * GRID + column:02d}>"


# -- scenes


def random_scene(rng: np.random.Generator) -> Scene:
    """Two to four blocks anywhere and the gripper anywhere, often near or holding a block.

    Wider than the benchmark's initial states, because episodes leave those.
    """
    blocks = _blocks(rng, int(rng.integers(2, 5)))
    colours = tuple(str(c) for c in rng.permutation(list(COLOURS))[: len(blocks)])
    gripper = rng.uniform([0.02, 0.02, 0.01], [0.38, 0.38, 0.15])
    where = rng.random()
    if where < 0.4:
        gripper[:2] = blocks[0] + rng.normal(0, 0.04, 2)
        gripper[2] = rng.uniform(0.01, 0.1)
    gripper = np.clip(gripper, [0, 0, 0.01], [TABLE, TABLE, HEIGHT])
    if where > 0.9:
        blocks[0] = gripper[:2]
        return Scene(blocks, colours, 0, gripper, closed=True, held=0)
    return Scene(blocks, colours, 0, gripper, closed=bool(rng.random() < 0.5))


def _blocks(rng: np.random.Generator, count: int) -> np.ndarray:
    """Positions float64 [<= count, 2]; crowded draws give fewer."""
    kept: list[np.ndarray] = []
    for point in rng.uniform([0.03, 0.02], [0.37, 0.38], (24, 2)):
        if all(np.hypot(*(point - other)) > SPACING for other in kept):
            kept.append(point)
        if len(kept) == count:
            break
    return np.stack(kept)


# -- questions


def _describe(rng: np.random.Generator, scene: Scene) -> Question:
    """Everything and its place, in random order: a grounded caption."""
    things = [*zip(scene.colours, scene.blocks, strict=True), ("gripper", scene.gripper)]
    order = rng.permutation(len(things))
    answer = " ".join(f"{things[i][0]} {cell(things[i][1])}" for i in order)
    return Question("describe", "what is where", answer)


def _point(rng: np.random.Generator, scene: Scene) -> Question:
    colour = _colour(rng, scene, present=0.9)
    place = cell(_block(scene, colour)) if colour in scene.colours else "none"
    return Question("point", f"where is the {colour} block", place)


def _mention(rng: np.random.Generator, scene: Scene) -> Question:
    """Any words around one block: its place. Teaches that sentences are about what they name.

    Without these a model points only when asked "where", and not when told what to do.
    """
    colour = _colour(rng, scene, present=1.0)
    before, after = (rng.choice(_OTHER_WORDS, rng.integers(4)) for _ in range(2))
    text = " ".join([*before, f"the {colour} block", *after])
    return Question("mention", text, cell(_block(scene, colour)))


def _gripper(rng: np.random.Generator, scene: Scene) -> Question:
    return Question("gripper", "where is the gripper", cell(scene.gripper))


def _offset(rng: np.random.Generator, scene: Scene) -> Question:
    """Pointing again, on the grid around the gripper."""
    colour = _colour(rng, scene, present=1.0)
    place = cell_around(_block(scene, colour) - scene.gripper[:2])
    return Question("offset", f"seen from the gripper where is the {colour} block", place)


def _height(rng: np.random.Generator, scene: Scene) -> Question:
    storey = min(9, int(scene.gripper[2] / STOREY))
    return Question("height", "how high is the gripper", str(storey))


def _held(rng: np.random.Generator, scene: Scene) -> Question:
    colour = "none" if scene.held is None else scene.colours[scene.held]
    return Question("held", "which block is in the gripper", colour)


def _tray(rng: np.random.Generator, scene: Scene) -> Question:
    colour = _colour(rng, scene, present=1.0)
    inside = bool(_block(scene, colour)[1] < TRAY_DEPTH)
    return Question("tray", f"is the {colour} block in the tray", _yes(inside))


def _name(rng: np.random.Generator, scene: Scene) -> Question:
    colour = _colour(rng, scene, present=1.0)
    return Question("name", f"what colour is the block at {cell(_block(scene, colour))}", colour)


def _exists(rng: np.random.Generator, scene: Scene) -> Question:
    colour = _colour(rng, scene, present=0.5)
    return Question("exists", f"is there a {colour} block", _yes(colour in scene.colours))


def _closed(rng: np.random.Generator, scene: Scene) -> Question:
    word = str(rng.choice(["open", "closed"]))
    return Question("closed", f"is the gripper {word}", _yes(scene.closed == (word == "closed")))


def _side(rng: np.random.Generator, scene: Scene) -> Question:
    """Yes or no: does a block lie on one side of the gripper, as the picture shows it?"""
    colour = _colour(rng, scene, present=1.0)
    offset = _block(scene, colour) - scene.gripper[:2]
    axis = int(np.abs(offset).argmax()) if np.abs(offset).min() < MARGIN else int(rng.integers(2))
    word = str(rng.choice(_SIDES[axis]))
    holds = (offset[axis] > 0) == (word == _SIDES[axis][1])
    phrase = f"{word} of" if axis == 0 else word
    return Question("side", f"is the {colour} block {phrase} the gripper", _yes(bool(holds)))


def _way(rng: np.random.Generator, scene: Scene) -> Question:
    """Where a block lies as seen from the gripper: two words, `near` for level."""
    colour = _colour(rng, scene, present=1.0)
    offset = _block(scene, colour) - scene.gripper[:2]
    words = (_SIDES[axis][int(offset[axis] > 0)] for axis in (0, 1))
    answer = " ".join(
        "near" if abs(d) < NEAR else word for d, word in zip(offset, words, strict=True)
    )
    return Question("way", f"where is the {colour} block from the gripper", answer)


_SIDES = (("left", "right"), ("below", "above"))
_OTHER_WORDS = tuple(word for word in TINY_WORDS if word not in COLOURS)


def _colour(rng: np.random.Generator, scene: Scene, present: float) -> str:
    """A colour that some block has with probability `present`, if any is missing at all."""
    missing = [colour for colour in COLOURS if colour not in scene.colours]
    among = missing if missing and rng.random() >= present else scene.colours
    return str(rng.choice(among))


def _block(scene: Scene, colour: str) -> np.ndarray:
    return scene.blocks[scene.colours.index(colour)]


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


KINDS: Mapping[str, tuple[Callable[[np.random.Generator, Scene], Question], float]] = {
    "describe": (_describe, 0.17),
    "point": (_point, 0.15),
    "mention": (_mention, 0.25),
    "offset": (_offset, 0.06),
    "gripper": (_gripper, 0.14),
    "name": (_name, 0.05),
    "exists": (_exists, 0.03),
    "closed": (_closed, 0.03),
    "held": (_held, 0.02),
    "height": (_height, 0.04),
    "side": (_side, 0.02),
    "way": (_way, 0.03),
    "tray": (_tray, 0.01),
}
"""Kind of question -> what asks it, and its share of the training questions."""


def ask(rng: np.random.Generator, scene: Scene, kind: str | None = None) -> Question:
    """A question about a scene, of a random kind unless one is named; ValueError for others."""
    if kind is None:
        kind = str(rng.choice(list(KINDS), p=[share for _, share in KINDS.values()]))
    if kind not in KINDS:
        raise ValueError(f"no questions of kind {kind!r}; there are {', '.join(KINDS)}")
    return KINDS[kind][0](rng, scene)


def examples(seed: int, kind: str | None = None) -> Iterator[tuple[Scene, Question]]:
    """Endless scenes with one question each; a function of its arguments alone."""
    rng = np.random.default_rng([2, seed])
    while True:
        scene = random_scene(rng)
        yield scene, ask(rng, scene, kind)
