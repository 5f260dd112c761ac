"""Frames of prepared data: encoded as PNG or JPEG, and read in any order from a local disk.

Where the decoded frames of a dataset take little room they are decoded once, into a memory map.
Larger datasets stay encoded, a mapped file a shard, and a frame is decoded whenever it is asked
for. Either way no more of a dataset is in memory than is being looked at.
"""

from __future__ import annotations

import fcntl
import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import simplejpeg
from PIL import Image

from vlm4vla.data.source import DAMAGE

Resize = Callable[[np.ndarray], np.ndarray]
DECODERS = min(4, len(os.sched_getaffinity(0)))
"""Threads that decode: decoders work without Python's lock."""
BLOCK = 256
"""Frames that a thread decodes at a time into a map."""
JPEG = b"\xff\xd8"
"""A JPEG file's first bytes."""
LARGEST = 2 * (Image.MAX_IMAGE_PIXELS or 0)
"""Pixels of a frame that Pillow refuses, too: a flipped bit in a head can ask for 12 GB."""


def encode_png(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] to PNG: exact, and small for simulators' flat colours."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", compress_level=1)
    return out.getvalue()


def encode_jpeg(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] to JPEG: small and quickly read, with half the resolution of colour.

    That is what cameras and the field's videos keep of colour, too; PNG keeps all.
    """
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=95, subsampling="4:2:0")
    return out.getvalue()


ENCODINGS: dict[str, Callable[[np.ndarray], bytes]] = {"png": encode_png, "jpeg": encode_jpeg}


def decode(data: bytes) -> np.ndarray:
    """PNG or JPEG bytes to uint8 [H, W, 3]; ValueError when they are damaged."""
    try:
        if data[:2] == JPEG:  # the same pixels as Pillow's in two thirds of the time
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            if height * width > LARGEST:
                raise ValueError(f"its head claims {width} x {height} pixels")
            return simplejpeg.decode_jpeg(data)
        picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        return np.array(picture.convert("RGB"))  # writable, as torch asks
    except (OSError, Image.DecompressionBombError, *DAMAGE) as error:
        raise ValueError(f"a frame is damaged or truncated ({error})") from error


class Encoded:
    """Frames by number, decoded when asked for: uint8 [px, px, 3].

    rows: frames of each shard. column: a shard's encoded frames, read and verified; it is asked
    once a shard, and again when whoever limits the disk has deleted the shard's map.
    """

    def __init__(
        self,
        folder: Path,
        rows: Sequence[int],
        column: Callable[[int], pa.ChunkedArray],
        resize: Resize,
    ) -> None:
        self.folder, self.column, self.resize = folder, column, resize
        self.starts = np.concatenate([[0], np.cumsum(rows)])
        self._maps: dict[int, pa.Array] = {}
        self._opening = threading.Lock()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, number: int | np.integer) -> np.ndarray:
        shard = int(np.searchsorted(self.starts, number, side="right")) - 1
        data = self._map(shard)[int(number - self.starts[shard])].as_py()
        return self.resize(decode(data)[None])[0]

    def _path(self, shard: int) -> Path:
        return self.folder / f"frames-{shard:05d}.arrow"

    def _map(self, shard: int) -> pa.Array:
        """The shard's map; its file's time says that it was used, for whoever limits the disk."""
        try:
            os.utime(self._path(shard))
            return self._maps[shard]
        except (FileNotFoundError, KeyError):
            with self._opening:
                self._forget()
                self._maps[shard] = found = self._open(shard)
                return found

    def _forget(self) -> None:
        """Close maps of deleted files: the disk gets its room back only then."""
        for shard in [shard for shard in self._maps if not self._path(shard).exists()]:
            del self._maps[shard]

    def _open(self, shard: int) -> pa.Array:
        path = self._path(shard)
        while True:
            with locked(path):
                if not path.exists():
                    _write_map(path, self.column(shard))
                try:
                    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0).column(0)
                except FileNotFoundError:  # deleted since, as the least used
                    continue


def _write_map(path: Path, column: pa.ChunkedArray) -> None:
    part = path.with_suffix(".part")
    batch = pa.record_batch([pa.concat_arrays(column.chunks)], names=["image"])
    with pa.ipc.new_file(part, batch.schema) as file:
        file.write_batch(batch)
    part.rename(path)


def decoded(
    path: Path, count: int, columns: Iterable[pa.ChunkedArray], px: int, resize: Resize
) -> np.ndarray:
    """A map uint8 [count, px, px, 3] of all frames; one worker of a node makes it, others wait.

    columns: the encoded frames, in order and in parts of any length.
    """
    with locked(path):
        if not path.exists():
            _decode_to(path, count, columns, px, resize)
        os.utime(path)
        return np.load(path, mmap_mode="r")


def _decode_to(
    path: Path, count: int, columns: Iterable[pa.ChunkedArray], px: int, resize: Resize
) -> None:
    """Built beside its final name, so that a crash leaves no half of it."""
    part, done = path.with_suffix(".part"), 0
    shape = (count, px, px, 3)
    out = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
    with part.open("r+b") as file:  # a map that finds its disk full kills the process
        os.posix_fallocate(file.fileno(), 0, part.stat().st_size)

    def fill(place: int, images: pa.ChunkedArray) -> None:
        # One by one, because published pictures differ in size.
        for row, data in enumerate(images.to_pylist(), place):
            out[row] = resize(decode(data)[None])[0]

    with ThreadPoolExecutor(DECODERS) as pool:
        for column in columns:
            blocks = range(0, len(column), BLOCK)
            parts = [column[block : block + BLOCK] for block in blocks]
            list(pool.map(fill, [done + block for block in blocks], parts))
            done += len(column)
    out.flush()
    part.rename(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process of a node makes a local file while the others wait."""
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
