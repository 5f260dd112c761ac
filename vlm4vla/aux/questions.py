"""Prepared questions: Parquet shards that a stage trains on, and the list of what was left out.

A dataset folder holds `manifest.json` and `shard-00000.parquet`, … One row is one question; a
picture that several consecutive questions share is stored with the first of them.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vlm4vla.aux.readers import Bad
from vlm4vla.aux.samples import Region, Sample
from vlm4vla.data.dataset import MANIFEST, Shard, read_shard, sha256
from vlm4vla.data.frames import Resize, decoded, encode_jpeg, encode_png

SCHEMA = pa.schema(
    [
        ("data", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("kind", pa.string()),
        ("regions", pa.list_(pa.list_(pa.float64(), 4))),
        ("where", pa.string()),
        ("held_out", pa.bool_()),
        ("image", pa.binary()),
    ]
)
PER_SHARD = 4096
MOST_PX = 448
"""Longer sides of published pictures are shrunk to this: twice what backbones are shown."""
HELD_OUT = 512
"""About so many questions of each row are never trained on."""
OFTEN, FEW = 8, 4096
"""One of so many scenes of a row's first questions is held out, so that small data have some."""


@dataclass(frozen=True)
class Manifest:
    """What is there, by row of the table: trained on and held out. bad: all that is not.

    drawings: shards of `vlm4vla.aux.drawings`, of stages that draw.
    """

    name: str
    counts: Mapping[str, tuple[int, int]]
    shards: tuple[Shard, ...]
    bad: tuple[str, ...]
    drawings: tuple[Shard, ...] = ()

    def to_bytes(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), indent=1).encode()

    @staticmethod
    def from_bytes(data: bytes) -> Manifest:
        told = json.loads(data)
        counts = {name: (trained, held) for name, (trained, held) in told["counts"].items()}
        shards, drawings = (
            tuple(Shard(**shard) for shard in told.get(kind, ())) for kind in ("shards", "drawings")
        )
        return Manifest(told["name"], counts, shards, tuple(told["bad"]), drawings)


def prepare(
    name: str,
    sources: Mapping[str, tuple[int, Iterable[Sample | Bad]]],
    put: Callable[[str, bytes], None],
    drawings: tuple[Shard, ...] = (),
) -> Manifest:
    """Write shards and, last, the manifest; ValueError when a source has no good sample.

    sources: by row of the table, about how many samples there are and the samples. put: (file
    name, bytes). drawings: shards that are there already.
    """
    writer = _Writer(put)
    for data, (expected, samples) in sources.items():
        before = writer.counts[data, False]
        _add_all(writer, data, samples, max(OFTEN, expected // HELD_OUT))
        if writer.counts[data, False] == before:
            raise ValueError(f"{data} has no sample that can be used: {'; '.join(writer.bad[:3])}")
    writer.flush()
    counts = {d: (writer.counts[d, False], writer.counts[d, True]) for d in sources}
    manifest = Manifest(name, counts, tuple(writer.shards), tuple(writer.bad), drawings)
    put(MANIFEST, manifest.to_bytes())
    return manifest


def _add_all(writer: _Writer, data: str, samples: Iterable[Sample | Bad], stride: int) -> None:
    """Scenes are held out with all their questions: every `stride`-th, of the first more."""
    scenes, scene, image, encoded, held_out = 0, "", object(), b"", False
    for number, sample in enumerate(samples):
        if isinstance(sample, Bad):
            writer.bad.append(str(sample))
            continue
        again = sample.image is image
        try:
            encoded = encoded if again else _encoded(sample)
        except (OSError, ValueError, KeyError) as error:
            writer.bad.append(f"{sample.where}: picture: {type(error).__name__}: {error}")
            continue
        if not (again or (sample.scene and sample.scene == scene)):
            scenes, every = scenes + 1, OFTEN if number < FEW else stride
            held_out = scenes % every == 0
        scene, image = sample.scene, sample.image
        writer.add(data, sample, held_out, encoded, again)


def _encoded(sample: Sample) -> bytes:
    """PNG of small pictures, which are drawn; JPEG of the others, shrunk to `MOST_PX`."""
    image = np.ascontiguousarray(sample.picture())
    if max(image.shape[:2]) <= MOST_PX // 2:
        return encode_png(image)
    small = Image.fromarray(image)
    small.thumbnail((MOST_PX, MOST_PX))
    return encode_jpeg(np.asarray(small))


@dataclass
class _Writer:
    put: Callable[[str, bytes], None]
    rows: list[dict[str, Any]] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    counts: Counter[tuple[str, bool]] = field(default_factory=Counter)

    def add(self, data: str, sample: Sample, held_out: bool, image: bytes, again: bool) -> None:
        """again: the picture is that of the row before, if that is in the same shard."""
        spelled = isinstance(sample.answer, str)
        self.rows.append(
            {
                **{"data": data, "question": sample.question, "kind": sample.kind},
                "answer": sample.answer if spelled else None,
                "ids": None if spelled else list(sample.answer),
                "regions": [list(region) for region in sample.regions],
                **{"where": sample.where, "held_out": held_out},
                "image": None if again and self.rows else image,
            }
        )
        self.counts[data, held_out] += 1
        if len(self.rows) == PER_SHARD:
            self.flush()

    def flush(self) -> None:
        if not self.rows:
            return
        out, name = io.BytesIO(), f"shard-{len(self.shards):05d}.parquet"
        pq.write_table(pa.Table.from_pylist(self.rows, SCHEMA), out, compression="zstd")
        self.put(name, out.getvalue())
        self.shards.append(Shard(name, len(self.rows), sha256(out.getvalue())))
        self.rows = []


class Questions:
    """Prepared questions by number; pictures come decoded, at the size the model sees.

    trained, held_out: numbers of the questions of each, in order, by row of the table.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = Manifest.from_bytes((folder / MANIFEST).read_bytes())
        shards = self.manifest.shards
        table = pa.concat_tables(read_shard(folder, shard, SCHEMA) for shard in shards)
        self.questions: list[str] = table["question"].to_pylist()
        texts, ids = _lists(table, "answer", "ids")
        self.answers = [_answer(*both) for both in zip(texts, ids, strict=True)]
        self.kinds, self.where, self._regions = _lists(table, "kind", "where", "regions")
        fresh = np.array([not null for null in table["image"].is_null().to_pylist()], bool)
        self._picture = np.cumsum(fresh) - 1
        self._images = table["image"].filter(pa.array(fresh))
        held, data = table["held_out"].to_numpy(), np.array(table["data"].to_pylist())
        self.trained = {d: np.flatnonzero((data == d) & ~held) for d in self.manifest.counts}
        self.held_out = {d: np.flatnonzero((data == d) & held) for d in self.manifest.counts}

    def __len__(self) -> int:
        return len(self.questions)

    def regions(self, number: int) -> tuple[Region, ...]:
        return tuple(tuple(region) for region in self._regions[number])

    def size(self, number: int) -> int:
        """About how long a question and its answer are, in characters; an id counts as four."""
        answer = self.answers[number]
        own = len(answer) if isinstance(answer, str) else 4 * len(answer)
        return len(self.questions[number]) + own

    def words(self) -> int:
        """One past the largest id that an answer is spelled with; 0 where all are text."""
        spelled = (answer for answer in self.answers if not isinstance(answer, str))
        return max((max(answer) + 1 for answer in spelled if answer), default=0)

    def pictures(self, px: int, resize: Resize) -> Callable[[np.ndarray], np.ndarray]:
        """A function from numbers to uint8 [B, px, px, 3], decoded once per folder and size."""
        path, count = self.folder / f"frames-{px}.npy", len(self._images)
        frames = decoded(path, count, [self._images], px, resize)
        return lambda numbers: frames[self._picture[numbers]]


def _lists(table: pa.Table, *names: str) -> Iterator[list[Any]]:
    return (table[name].to_pylist() for name in names)


def _answer(text: str | None, ids: Sequence[int] | None) -> str | tuple[int, ...]:
    return text if text is not None else tuple(ids or ())
