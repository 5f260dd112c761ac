"""BridgeVQA (4.2, A.6): spatial questions about robot scenes as a LLaVA-style dataset.

A folder holds `images/NAME.png`, and beside them what is known of each: `depth/NAME.png`
(16 bit, millimetres), `segments/NAME.png` (8 bit, 0 for background), `things/NAME.txt` (what
segments 1, 2, … show, one a line) and `scenes/NAME.jsonl` (its questions, one a line).
`questions.json` joins the questions and is written last.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from envs.api import Snapshot
from envs.hashing import stable_hash
from vlm4vla.aux.spatial import Margins, Question, questions

QUESTIONS = "questions.json"
NAMES = "things"
MILLIMETRES = 1000
FARTHEST = 65_535
"""The depth, in millimetres, at which everything beyond is kept."""

Scene = tuple[str, Callable[[], Snapshot]]
"""A scene's name, which is a file's too, and what looks at it."""


def write(
    scenes: Iterable[Scene],
    folder: Path,
    count: int = 10,
    seed: int = 0,
    margins: Margins | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> Path:
    """Ask `count` questions about each scene; the path of `questions.json`.

    Scenes that are there already are not looked at again, so a stopped run goes on where it
    was. Questions depend on the seed and the scene's name alone. ValueError where none came.
    progress: called with the scenes that are done.
    """
    names = []
    for name, look in scenes:
        if not _scene(folder, name).exists():
            rng = np.random.default_rng(int(stable_hash({"seed": seed, "name": name})[:16], 16))
            _write_scene(folder, name, look(), rng, count, margins)
        names.append(name)
        progress(len(names))
    lines = [line for name in names for line in _scene(folder, name).read_text().splitlines()]
    records = [json.loads(line) for line in lines]
    if not records:
        raise ValueError(
            f"{len(names)} scenes gave no question for {folder}: their things are unseen, too "
            "many of one name, or too alike; take other scenes or smaller margins"
        )
    write_atomically(folder / QUESTIONS, json.dumps(records, indent=1).encode())
    return folder / QUESTIONS


def _scene(folder: Path, name: str) -> Path:
    return folder / "scenes" / f"{name}.jsonl"


def _write_scene(
    folder: Path,
    name: str,
    seen: Snapshot,
    rng: np.random.Generator,
    count: int,
    margins: Margins | None,
) -> None:
    """The scene's own file comes last: it says that the others are there."""
    millimetres = np.rint(seen.depth.astype(np.float64) * MILLIMETRES).clip(0, FARTHEST)
    maps = {
        "images": seen.image,
        "depth": millimetres.astype(np.uint16),
        "segments": seen.segments.astype(np.uint8),
    }
    for kind, pixels in maps.items():
        write_atomically(folder / kind / f"{name}.png", png(pixels))
    things = "".join(f"{thing.name}\n" for thing in seen.things)
    write_atomically(folder / NAMES / f"{name}.txt", things.encode())
    asked = questions(seen.things, seen.camera, rng, count, margins)
    lines = [
        json.dumps(record(f"{name}-{number:02d}", f"images/{name}.png", q)) + "\n"
        for number, q in enumerate(asked)
    ]
    write_atomically(_scene(folder, name), "".join(lines).encode())


def record(identity: str, image: str, question: Question) -> dict[str, Any]:
    """One question in LLaVA's format, with what it is about."""
    turns = [
        {"from": "human", "value": f"<image>\n{question.text}"},
        {"from": "gpt", "value": question.answer},
    ]
    return {"id": identity, "image": image, "about": question.relation, "conversations": turns}


def png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W] or [H, W, 3], or uint16 [H, W], without loss."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def write_atomically(path: Path, data: bytes) -> None:
    """Whole or not at all, whenever the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(data)
    part.rename(path)
