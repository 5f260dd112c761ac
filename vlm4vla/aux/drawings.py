"""Scenes with the maps to draw of them, in shards beside a stage's questions (omni-generation)."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envs.tabletop import render
from envs.tabletop_maps import maps
from vlm4vla.aux.bridge_vqa import MILLIMETRES, NAMES, png
from vlm4vla.aux.datasets import VqaDataset
from vlm4vla.aux.tabletop_vqa import random_scene
from vlm4vla.data.dataset import Shard, sha256

SCHEMA = pa.schema(
    [
        ("image", pa.binary()),
        ("depth", pa.binary()),
        ("segments", pa.binary()),
        ("things", pa.list_(pa.string())),
    ]
)
PER_SHARD = 1024
TABLETOP = 1024
"""Scenes of the tabletop."""


@dataclass(frozen=True)
class Drawing:
    """One scene. image, depth (16 bit, millimetres), segments (8 bit, 0 for background): PNG.

    things: what segments 1, 2, … show.
    """

    image: bytes
    depth: bytes
    segments: bytes
    things: tuple[str, ...]


def drawings(row: VqaDataset, folder: Path) -> Iterator[Drawing]:
    """The scenes of a row's data; ValueError for data whose scenes have no maps."""
    if row.format not in SOURCES:
        raise ValueError(f"the data of {row.name!r} hold no maps to draw: name a row that has them")
    return SOURCES[row.format](folder)


def write(found: Iterator[Drawing], put: Callable[[str, bytes], None]) -> tuple[Shard, ...]:
    """Shards of scenes, written by put(file name, bytes)."""
    shards: list[Shard] = []
    while rows := [asdict(drawing) for drawing in islice(found, PER_SHARD)]:
        out, name = io.BytesIO(), f"drawings-{len(shards):05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), out, compression="zstd")
        put(name, out.getvalue())
        shards.append(Shard(name, len(rows), sha256(out.getvalue())))
    return tuple(shards)


def _from_folder(folder: Path) -> Iterator[Drawing]:
    """What `vlm4vla.aux.bridge_vqa.write` wrote; FileNotFoundError where it wrote nothing."""
    names = sorted(path.stem for path in folder.glob("scenes/*.jsonl"))
    if not names:
        raise FileNotFoundError(
            f"{folder} holds no scenes: write some with jobs/spatial_questions.py first"
        )
    for name in names:
        kinds = ("images", "depth", "segments")
        image, depth, segments = ((folder / k / f"{name}.png").read_bytes() for k in kinds)
        things = (folder / NAMES / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        yield Drawing(image, depth, segments, tuple(things))


def _from_tabletop(folder: Path) -> Iterator[Drawing]:
    rng = np.random.default_rng(4)
    for _ in range(TABLETOP):
        scene = random_scene(rng)
        depth, segments, things = maps(scene)
        millimetres = np.rint(depth * MILLIMETRES).astype(np.uint16)
        yield Drawing(png(render(scene)), png(millimetres), png(segments), things)


SOURCES: Mapping[str, Callable[[Path], Iterator[Drawing]]] = {
    "llava": _from_folder,
    "tabletop": _from_tabletop,
}
"""By the format of the row."""
