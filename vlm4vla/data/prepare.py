"""Published demonstrations to prepared shards: each shard alone, by any worker, in any order."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from envs.api import ACTION_DIM, Demonstration, did_you_mean
from envs.hashing import stable_hash
from vlm4vla.data.calvin import Calvin
from vlm4vla.data.dataset import Manifest, Shard, encode_shard, sha256
from vlm4vla.data.frames import ENCODINGS
from vlm4vla.data.lerobot_v3 import LeRobotV3
from vlm4vla.data.libero_hdf5 import LiberoHdf5
from vlm4vla.data.normalise import Statistics
from vlm4vla.data.prepared import Prepared
from vlm4vla.data.rlds import Rlds
from vlm4vla.data.source import BadEpisodeError, Source, rotated

VERSION = 2
"""Of the prepared bytes; part of every id."""

GRIPPERS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda gripper: gripper,
    "negated": lambda gripper: -gripper,
    "opening": lambda gripper: 2 * gripper - 1,
    "closing": lambda gripper: 1 - 2 * gripper,
}
"""How a source's gripper becomes the benchmark's ±1: as it is, its negative, or from 0..1."""


@dataclass(frozen=True)
class Options:
    """What a reader may be told beyond its paths; each is for the formats that have it."""

    split: str | None = None
    camera: str | None = None
    layout: str | None = None
    no_noops: bool = False


Open = Callable[[Sequence[Path], Options], Source]


def _calvin(paths: Sequence[Path], options: Options) -> Source:
    return Calvin(_one(paths), options.split or "training")


def _libero(paths: Sequence[Path], options: Options) -> Source:
    return LiberoHdf5(paths, options.no_noops)


def _rlds(paths: Sequence[Path], options: Options) -> Source:
    return Rlds(_one(paths), options.split or "train", options.layout)


def _lerobot(paths: Sequence[Path], options: Options) -> Source:
    return LeRobotV3(_one(paths), options.camera)


def _prepared(paths: Sequence[Path], options: Options) -> Source:
    return Prepared(_one(paths))


FORMATS: Mapping[str, tuple[Open, frozenset[str]]] = {
    "calvin": (_calvin, frozenset({"split"})),
    "libero": (_libero, frozenset({"no_noops"})),
    "rlds": (_rlds, frozenset({"split", "layout"})),
    "lerobot": (_lerobot, frozenset({"camera"})),
    "prepared": (_prepared, frozenset()),
}
"""Format -> its reader and the options it has."""


def _one(paths: Sequence[Path]) -> Path:
    if len(paths) != 1:
        raise ValueError(f"this format is one folder; {len(paths)} were given")
    return paths[0]


def open_source(kind: str, paths: Sequence[Path], options: Options = Options()) -> Source:
    """The dataset of format `kind` at absolute `paths`; ValueError for an option it lacks."""
    if kind not in FORMATS:
        raise did_you_mean("format", kind, FORMATS)
    reader, known = FORMATS[kind]
    given = {name for name, value in dataclasses.asdict(options).items() if value}
    if given - known:
        raise ValueError(f"{kind} has no option {', '.join(sorted(given - known))}")
    return reader([path.absolute() for path in paths], options)


@dataclass(frozen=True)
class Preparation:
    """How a source becomes a dataset; picklable, and workers share nothing else.

    px: side of the stored frames. image: "png" (exact) or "jpeg". rotate: turn frames by 180°.
    gripper: a row of GRIPPERS. skip_bad: leave out and list episodes that cannot be used.
    """

    source: Source
    name: str
    origin: str
    px: int = 224
    image: str = "png"
    per_shard: int = 16
    rotate: bool = False
    gripper: str = "same"
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if self.image not in ENCODINGS:
            raise did_you_mean("image encoding", self.image, ENCODINGS)
        if self.gripper not in GRIPPERS:
            raise did_you_mean("gripper convention", self.gripper, GRIPPERS)
        if not len(self.source):
            raise ValueError(f"{self.origin} lists no episodes")

    @property
    def id(self) -> str:
        """The dataset's id: of what is read and of what changes its bytes, not of places."""
        how = [self.px, self.image, self.per_shard, self.rotate, self.gripper]
        return f"{self.name}-{stable_hash([VERSION, self.source.fingerprint(), how])[:12]}"

    @property
    def shards(self) -> int:
        return -(-len(self.source) // self.per_shard)

    def shard(self, number: int) -> tuple[bytes, bytes]:
        """Parquet bytes of shard `number` (empty when every episode was bad) and its note."""
        first = number * self.per_shard
        skipped: list[str] = []
        actions: list[np.ndarray] = []
        demos = self._episodes(first, skipped, actions)
        begin = next(demos, None)
        data = b"" if begin is None else encode_shard(_joined(begin, demos), first, self.image)
        return data, _note(data, skipped, actions)

    def _episodes(
        self, first: int, skipped: list[str], actions: list[np.ndarray]
    ) -> Iterator[Demonstration]:
        """The shard's good episodes, one in memory at a time; what happened goes to the lists."""
        for index in range(first, min(first + self.per_shard, len(self.source))):
            try:
                demo = self._fitted(self.source.read(index))
            except BadEpisodeError as error:
                if not self.skip_bad:
                    raise
                skipped.append(str(error))
                continue
            actions.append(demo.actions)
            yield demo

    def _fitted(self, demo: Demonstration) -> Demonstration:
        images = rotated(demo.images) if self.rotate else demo.images
        moves = demo.actions.copy()
        moves[:, -1] = GRIPPERS[self.gripper](moves[:, -1])
        frames = np.stack([_resized(image, self.px) for image in images])
        return dataclasses.replace(demo, images=frames, actions=moves)

    def manifest(self, notes: Sequence[bytes]) -> Manifest:
        """The dataset's manifest from its shards' notes, in order, without their frames.

        ValueError when nothing is left, or episodes were skipped that may not be.
        """
        read = [_read_note(note) for note in notes]
        skipped = tuple(why for head, _ in read for why in head["skipped"])
        self.accept(skipped)
        actions = np.concatenate([moves for _, moves in read])
        if not len(actions):
            raise ValueError(f"{self.origin}: every episode was bad; the first: {skipped[0]}")
        shards = tuple(
            Shard(shard_name(number), head["rows"], head["sha256"])
            for number, (head, _) in enumerate(read)
            if head["rows"]
        )
        episodes = sum(head["episodes"] for head, _ in read)
        statistics = Statistics.of(actions)
        source = f"{self.origin} (listing {self.source.fingerprint()[:16]}), {self.px} px"
        return Manifest(
            self.name, source, episodes, len(actions), shards, statistics, self.image, skipped
        )

    def accept(self, skipped: Sequence[str]) -> None:
        """ValueError when episodes were skipped, here or in an earlier attempt, that may not be."""
        if skipped and not self.skip_bad:
            raise ValueError(f"{skipped[0]} ({len(skipped)} in all; --skip-bad leaves them out)")


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.parquet"


def _joined(first: Demonstration, rest: Iterator[Demonstration]) -> Iterator[Demonstration]:
    yield first
    yield from rest


def _resized(image: np.ndarray, px: int) -> np.ndarray:
    """As `envs.resize` (bit for bit, a test says), so that data and simulators look alike."""
    if image.shape[:2] == (px, px):
        return image
    return np.asarray(Image.fromarray(image).resize((px, px), Image.Resampling.BICUBIC))


def _note(data: bytes, skipped: Sequence[str], actions: Sequence[np.ndarray]) -> bytes:
    """A line of JSON, then the shard's raw actions: statistics need no second pass."""
    head = {
        "sha256": sha256(data),
        "episodes": len(actions),
        "rows": sum(map(len, actions)),
        "skipped": list(skipped),
    }
    return json.dumps(head).encode() + b"\n" + b"".join(moves.tobytes() for moves in actions)


def _read_note(note: bytes) -> tuple[dict, np.ndarray]:
    head, _, actions = note.partition(b"\n")
    return json.loads(head), np.frombuffer(actions, np.float32).reshape(-1, ACTION_DIM)
