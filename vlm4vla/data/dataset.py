"""Prepared demonstrations: Parquet shards of PNG or JPEG frames, and a cache for training.

A dataset folder holds `manifest.json` and `shard-00000.parquet`, … One row is one frame:
episode (int32), instruction (string), image (PNG or JPEG bytes), action (float32 [7], raw units).
Rows are in time order and no episode spans two shards.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import io
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from envs.api import ACTION_DIM, Demonstration
from vlm4vla.data.normalise import Statistics

SCHEMA = pa.schema(
    [
        ("episode", pa.int32()),
        ("instruction", pa.string()),
        ("image", pa.binary()),
        ("action", pa.list_(pa.float32(), ACTION_DIM)),
    ]
)
MANIFEST = "manifest.json"
Resize = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Shard:
    name: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a dataset holds and where it came from; written last, so it marks completeness."""

    name: str
    source: str
    episodes: int
    frames: int
    shards: tuple[Shard, ...]
    statistics: Statistics
    image: str = "png"
    skipped: tuple[str, ...] = ()
    """Episodes of the source that could not be used: file, row and reason of each."""

    def to_bytes(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), indent=1).encode()

    @staticmethod
    def from_bytes(data: bytes) -> Manifest:
        value = json.loads(data)
        shards = tuple(Shard(**shard) for shard in value.pop("shards"))
        statistics = Statistics.from_json(value.pop("statistics"))
        skipped = tuple(value.pop("skipped", ()))
        return Manifest(**value, shards=shards, statistics=statistics, skipped=skipped)


def encode_png(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] to PNG: exact, and small for simulators' flat colours."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", compress_level=1)
    return out.getvalue()


def encode_jpeg(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] to JPEG with all its colour: camera frames at a fifth of PNG's size."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=95, subsampling=0)
    return out.getvalue()


ENCODINGS: dict[str, Callable[[np.ndarray], bytes]] = {"png": encode_png, "jpeg": encode_jpeg}


def decode(data: bytes) -> np.ndarray:
    """PNG or JPEG bytes to uint8 [H, W, 3]; ValueError when they are damaged."""
    try:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except OSError as error:
        raise ValueError(f"a frame is damaged or truncated ({error})") from error


def encode_shard(
    demonstrations: Iterable[Demonstration], first_episode: int, image: str = "png"
) -> bytes:
    """Parquet bytes of consecutive episodes; raises ValueError on actions that are not finite.

    image: a row of ENCODINGS.
    """
    numbered = enumerate(demonstrations, first_episode)
    tables = [_table(demo, number, ENCODINGS[image]) for number, demo in numbered]
    sink = io.BytesIO()
    pq.write_table(pa.concat_tables(tables), sink, compression="zstd")
    return sink.getvalue()


def _table(demo: Demonstration, episode: int, encode: Callable[[np.ndarray], bytes]) -> pa.Table:
    if demo.actions.shape != (len(demo.images), ACTION_DIM) or not np.isfinite(demo.actions).all():
        raise ValueError(
            f"episode {episode}: actions {demo.actions.shape} for {len(demo.images)} frames must "
            f"be finite with {ACTION_DIM} columns"
        )
    steps = len(demo.images)
    actions = pa.FixedSizeListArray.from_arrays(demo.actions.astype(np.float32).ravel(), ACTION_DIM)
    columns = [
        pa.array(np.full(steps, episode, np.int32)),
        pa.array([demo.instruction] * steps),
        pa.array([encode(image) for image in demo.images], pa.binary()),
        actions,
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def build_manifest(name: str, source: str, shards: Iterable[tuple[str, bytes]]) -> Manifest:
    """The manifest of shards given as (file name, Parquet bytes), read once each."""
    described, actions, episodes = [], [], 0
    for shard_name, data in shards:
        table = pq.read_table(io.BytesIO(data), columns=["episode", "action"])
        described.append(Shard(shard_name, table.num_rows, sha256(data)))
        actions.append(_actions(table))
        episodes += len(table["episode"].unique())
    if not described:
        raise ValueError(f"dataset {name} has no shards: no demonstration succeeded")
    everything = np.concatenate(actions)
    statistics = Statistics.of(everything)
    return Manifest(name, source, episodes, len(everything), tuple(described), statistics)


def _actions(table: pa.Table) -> np.ndarray:
    return np.stack(table["action"].to_numpy(zero_copy_only=False)).astype(np.float32)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_shard(folder: Path, shard: Shard, schema: pa.Schema) -> pa.Table:
    """A manifest's file with these columns; ValueError when it is damaged or lies elsewhere."""
    if Path(shard.name).name != shard.name:
        raise ValueError(f"{folder / MANIFEST} names a shard {shard.name!r} outside its folder")
    data = (folder / shard.name).read_bytes()
    if sha256(data) != shard.sha256:
        raise ValueError(
            f"{folder / shard.name} is damaged: its checksum differs from {MANIFEST}'s; "
            "delete it and fetch or prepare the dataset again"
        )
    return pq.read_table(io.BytesIO(data), schema=schema)


class Dataset:
    """Random access to frames and action chunks of a dataset folder.

    images: uint8 memory map [N, px, px, 3], decoded and resized once per folder and size.
    """

    def __init__(self, folder: Path, px: int, resize: Resize) -> None:
        self.manifest = Manifest.from_bytes((folder / MANIFEST).read_bytes())
        shards = self.manifest.shards
        table = pa.concat_tables(read_shard(folder, shard, SCHEMA) for shard in shards)
        self.actions = _actions(table)
        self.instructions: list[str] = table["instruction"].to_pylist()
        self.last = _last_frames(table["episode"].to_numpy())
        self.images = decoded(folder / f"frames-{px}.npy", table["image"], px, resize)

    def __len__(self) -> int:
        return len(self.actions)

    def chunks(self, indices: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Raw actions float32 [B, length, 7] from each frame on, and their mask bool [B, length].

        Beyond the episode's end the last action is repeated and masked out of the loss.
        """
        window = indices[:, None] + np.arange(length)
        last = self.last[indices][:, None]
        return self.actions[np.minimum(window, last)], window <= last


def _last_frames(episodes: np.ndarray) -> np.ndarray:
    """For each frame, the index of its episode's last frame."""
    ends = np.flatnonzero(np.append(episodes[1:] != episodes[:-1], True))
    return ends[np.searchsorted(ends, np.arange(len(episodes)))]


def decoded(path: Path, images: pa.ChunkedArray, px: int, resize: Resize) -> np.ndarray:
    """The decoded cache; one worker of a node builds it while the others wait."""
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _decode_to(path, images, px, resize)
    return np.load(path, mmap_mode="r")


def _decode_to(path: Path, images: pa.ChunkedArray, px: int, resize: Resize) -> None:
    """Built beside its final name, so that a crash leaves no half of it."""
    part = path.with_suffix(".part")
    shape = (len(images), px, px, 3)
    out = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)

    def fill(first: int) -> None:
        block = images.slice(first, 256).to_pylist()
        # One by one, because published pictures differ in size.
        out[first : first + len(block)] = np.concatenate(
            [resize(np.stack([decode(d)])) for d in block]
        )

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fill, range(0, len(images), 256)))
    out.flush()
    part.rename(path)
