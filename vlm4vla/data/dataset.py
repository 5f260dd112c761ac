"""Prepared demonstrations: Parquet shards of PNG or JPEG frames, and random access to them.

A dataset folder holds `manifest.json` and `shard-00000.parquet`, … One row is one frame:
episode (int32), instruction (string), image (PNG or JPEG bytes), action (float32 [7], raw units).
Rows are in time order and no episode spans two shards.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envs.api import ACTION_DIM, Demonstration
from vlm4vla.data.frames import ENCODINGS, Encoded, Resize, decoded, locked
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
KEEP_DECODED = 16 * 1024**3
"""Bytes of frames that are kept decoded; more stay encoded: one suite of LIBERO, not CALVIN."""
Fetch = Callable[[str], None]
"""Puts a file of a dataset, by its name, into the dataset's local folder."""


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
        """ValueError for anything but what `to_bytes` gives."""
        try:
            value = dict(json.loads(data))
            shards = tuple(Shard(**shard) for shard in value.pop("shards"))
            statistics = Statistics.from_json(value.pop("statistics"))
            skipped = tuple(value.pop("skipped", ()))
            found = Manifest(**value, shards=shards, statistics=statistics, skipped=skipped)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"not a {MANIFEST} ({type(error).__name__}: {error})") from error
        found._check()
        return found

    def _check(self) -> None:
        texts = [self.name, self.source, self.image, *self.skipped]
        texts += [text for shard in self.shards for text in (shard.name, shard.sha256)]
        counts = [self.episodes, self.frames, *(shard.rows for shard in self.shards)]
        if {type(text) for text in texts} != {str} or self.image not in ENCODINGS:
            raise ValueError(f"{MANIFEST} has something else where a text belongs")
        if {type(count) for count in counts} != {int} or min(counts) < 0:
            raise ValueError(f"{MANIFEST} has something else where a count belongs")
        if self.frames != sum(shard.rows for shard in self.shards):
            raise ValueError(f"{MANIFEST} has {self.frames} frames, its shards have others")


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
    flat = table["action"].combine_chunks().flatten()
    return flat.to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, ACTION_DIM)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def path_of(folder: Path, shard: Shard) -> Path:
    if Path(shard.name).name != shard.name or shard.name in ("", ".."):
        raise ValueError(f"{folder / MANIFEST} names a shard {shard.name!r} outside its folder")
    return folder / shard.name


def read_shard(folder: Path, shard: Shard, schema: pa.Schema) -> pa.Table:
    """A manifest's file with these columns; ValueError when it is damaged or lies elsewhere."""
    data = path_of(folder, shard).read_bytes()
    if sha256(data) != shard.sha256:
        raise ValueError(
            f"{folder / shard.name} is damaged: its checksum differs from {MANIFEST}'s; "
            "delete it and fetch or prepare the dataset again"
        )
    table = pq.read_table(io.BytesIO(data), schema=schema)
    if table.num_rows != shard.rows:
        raise ValueError(
            f"{folder / shard.name} holds {table.num_rows} rows, {MANIFEST} says {shard.rows}"
        )
    return table


class Files(Protocol):
    """A dataset on this machine that is fetched as it is needed; folder: its manifest is there."""

    @property
    def folder(self) -> Path: ...

    def fetch(self, name: str) -> None:
        """Put one file into the folder."""
        ...

    def everything(self) -> Path:
        """The folder with every file."""
        ...


class Dataset:
    """Random access to frames and action chunks of a dataset folder, of any size.

    images: uint8 [px, px, 3] by number. actions: float32 [N, 7]. instructions: N texts.
    fetch: for a folder that holds the manifest alone; shards are fetched as they are needed,
    and may be deleted at any time. keep: frames that take more bytes decoded, or more than the
    disk has left, stay encoded.
    Both decide how fast frames are read, and never what they are.
    """

    def __init__(
        self,
        folder: Path,
        px: int,
        resize: Resize,
        fetch: Fetch | None = None,
        keep: int = KEEP_DECODED,
    ) -> None:
        self.folder, self.fetch = folder, fetch
        written = (folder / MANIFEST).read_bytes()
        self.manifest = Manifest.from_bytes(written)
        rows = [shard.rows for shard in self.manifest.shards]
        digest = sha256(written)[:12]
        index = self._index(folder / f"index-{digest}.arrow")
        self.actions = _actions(index)
        self.instructions = _texts(index["instruction"])
        self.last = _last_frames(index["episode"].to_numpy())
        self.images: np.ndarray | Encoded
        path, room = folder / f"frames-{px}-{digest}.npy", 3 * sum(rows) * px**2
        if room <= keep and (path.exists() or room < shutil.disk_usage(folder).free):
            columns = (self._shard(number)["image"] for number in range(len(rows)))
            self.images = decoded(path, sum(rows), columns, px, resize)
        else:
            self.images = Encoded(folder, rows, lambda n: self._shard(n)["image"], resize)

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def decodes(self) -> bool:
        """Whether a frame is decoded whenever it is read, which is worth some threads."""
        return isinstance(self.images, Encoded)

    def chunks(self, indices: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Raw actions float32 [B, length, 7] from each frame on, and their mask bool [B, length].

        Beyond the episode's end the last action is repeated and masked out of the loss.
        """
        window = indices[:, None] + np.arange(length)
        last = self.last[indices][:, None]
        return self.actions[np.minimum(window, last)], window <= last

    def _index(self, path: Path) -> pa.Table:
        """Everything but the frames, from one look at each shard."""
        with locked(path):
            if not path.exists():
                tables = [
                    self._shard(number).drop_columns("image")
                    for number in range(len(self.manifest.shards))
                ]
                part = path.with_suffix(".part")
                with pa.ipc.new_file(part, tables[0].schema) as file:
                    file.write_table(pa.concat_tables(tables))
                part.rename(path)
            with pa.memory_map(str(path)) as file:
                return pa.ipc.open_file(file).read_all()

    def _shard(self, number: int) -> pa.Table:
        shard = self.manifest.shards[number]
        if self.fetch is not None:
            self.fetch(path_of(self.folder, shard).name)
        return read_shard(self.folder, shard, SCHEMA)


def _texts(column: pa.ChunkedArray) -> list[str]:
    """One string for all frames that share it."""
    coded = column.combine_chunks().dictionary_encode()
    texts = coded.dictionary.to_pylist()
    return [texts[code] for code in coded.indices.to_numpy()]


def _last_frames(episodes: np.ndarray) -> np.ndarray:
    """For each frame, the index of its episode's last frame."""
    ends = np.flatnonzero(np.append(episodes[1:] != episodes[:-1], True))
    return ends[np.searchsorted(ends, np.arange(len(episodes)))]
