"""Published and prepared demonstrations with damaged files: read right, or refused by name.

Readers promise ValueError for damage. None of these formats covers every byte by a checksum, so
what is accepted must be what a policy can be trained on, and nothing more can be asked.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

import h5py
import numpy as np
from PIL import Image

from envs.api import Demonstration
from tests.fuzz.damage import Target, altered, damaged, refusal
from tests.vlm4vla import published
from vlm4vla.data.dataset import MANIFEST, Dataset, build_manifest, encode_shard
from vlm4vla.data.frames import decode
from vlm4vla.data.lerobot_v3 import LeRobotV3
from vlm4vla.data.lerobot_write import write_lerobot
from vlm4vla.data.libero_hdf5 import LiberoHdf5
from vlm4vla.data.prepared import Prepared
from vlm4vla.data.rlds import Rlds
from vlm4vla.data.source import Source
from vlm4vla.data.tfrecord import build_example, masked_crc, parse_example

FRAMES = published.smooth(3, 16)
MOVES = published.actions(3).astype(np.float32)
DEMOS = [
    Demonstration("open it", FRAMES, MOVES, True, 3),
    Demonstration("close it", FRAMES[1:], MOVES[1:], True, 2),
]


@lru_cache
def folder() -> Path:
    """In memory where that can be: every input is written once."""
    return Path(mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def clean() -> None:
    if folder.cache_info().currsize:
        shutil.rmtree(folder())
        folder.cache_clear()


def pictures() -> list[bytes]:
    found = []
    for kind, options in (("PNG", {}), ("JPEG", {"quality": 90}), ("JPEG", {"progressive": True})):
        out = io.BytesIO()
        Image.fromarray(FRAMES[0]).save(out, kind, **options)
        found.append(out.getvalue())
    return found


PICTURES = pictures()


def check_picture(data: bytes) -> str:
    try:
        found = decode(data)
    except ValueError as error:
        return refusal(error)
    assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
    return "accepted"


EXAMPLE = build_example(
    {
        "steps/observation/image": [PICTURES[0]] * 3,
        "steps/observation/state": np.ones((3, 7), np.float32),
        "steps/action": MOVES,
        "steps/language_instruction": [b"open it"] * 3,
    }
)


def check_example(data: bytes) -> str:
    try:
        found = parse_example(data)
    except ValueError as error:
        return refusal(error)
    assert all(isinstance(values, list | np.ndarray) for values in found.values())
    return "accepted"


def check_source(read: Callable[[], Source]) -> str:
    """What a folder holds: refused, or all its episodes are fit to be trained on."""
    try:
        source = read()
        demos = list(source)
    except (ValueError, FileNotFoundError) as error:
        return refusal(error)
    for demo in demos:
        assert demo.images.dtype == np.uint8 and demo.images.shape[::3] == (len(demo.images), 3)
        assert demo.actions.shape == (len(demo.images), 7) and np.isfinite(demo.actions).all()
        assert isinstance(demo.instruction, str) and demo.instruction.strip()
    return "accepted"


class Files:
    """A dataset of which one file is replaced at a time, and then put back.

    bend: what else than `damaged` may happen to a file's bytes, by the end of its name.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[Path], None],
        read: Callable[[Path], Source],
        bend: dict[str, Callable[[Random, bytes], bytes]] | None = None,
    ) -> None:
        self.name, self.make, self.read, self.bend = name, make, read, bend or {}
        self.files: list[tuple[Path, bytes]] = []

    def whole(self) -> list[tuple[Path, bytes]]:
        root = folder() / self.name
        if not root.exists():
            self.make(root)
            found = sorted(path for path in root.rglob("*") if path.is_file())
            self.files = [(path, path.read_bytes()) for path in found]
            assert check_source(partial(self.read, root)) == "accepted"
        return self.files

    def draw(self, rng: Random) -> tuple[int, bytes]:
        number = rng.randrange(len(self.whole()))
        path, data = self.files[number]
        bends = [bend for end, bend in self.bend.items() if path.name.endswith(end)]
        return number, rng.choice([damaged, *bends])(rng, data)

    def check(self, found: tuple[int, bytes]) -> str:
        number, data = found
        path, sound = self.whole()[number]
        path.write_bytes(data)
        try:
            return check_source(partial(self.read, folder() / self.name))
        finally:
            path.write_bytes(sound)

    def target(self) -> Target:
        return Target(self.name, self.draw, self.check, clean)


def bent_json(rng: Random, data: bytes) -> bytes:
    return json.dumps(altered(rng, json.loads(data))).encode()


def record(rng: Random, data: bytes) -> bytes:
    """An intact record around a damaged or wrong example."""
    strange: list[Any] = [[], [b""], [b"x"] * 3, np.ones(21, np.float32), np.ones(3), np.arange(21)]
    if rng.random() < 0.5:
        example = damaged(rng, EXAMPLE)
    else:
        features = parse_example(EXAMPLE)
        features[rng.choice([*features])] = rng.choice(strange)
        example = build_example(features)
    length = len(example).to_bytes(8, "little")
    crcs = [masked_crc(part).to_bytes(4, "little") for part in (length, example)]
    return length + crcs[0] + example + crcs[1]


def group(rng: Random, data: bytes) -> bytes:
    """A sound HDF5 file of something else."""
    out = io.BytesIO(data)
    values: tuple[Any, ...] = (np.zeros((3, 7)), np.zeros((3, 6)), np.array("x", object), np.nan)
    with h5py.File(out, "r+") as file:
        name = rng.choice(("data", "data/demo_0", "data/demo_0/actions", "data/demo_0/obs"))
        act = rng.randrange(3)
        if act == 0:
            problem = rng.choice(("{", "[]", "3", '{"language_instruction": [1]}', "null"))
            file["data"].attrs["problem_info"] = problem
        elif act == 1:
            del file[name]
        else:
            del file[name]
            file[name] = rng.choice(values)
    return out.getvalue()


def make_rlds(root: Path) -> None:
    published.rlds(root, "libero_10", [[EXAMPLE]], "image")


def make_lerobot(root: Path, video: bool) -> None:
    write_lerobot(root, DEMOS, 10, "panda", video)


def make_prepared(root: Path) -> None:
    root.mkdir()
    data = encode_shard(DEMOS, 0)
    (root / "shard-00000.parquet").write_bytes(data)
    manifest = build_manifest("d", "here", [("shard-00000.parquet", data)])
    (root / MANIFEST).write_bytes(manifest.to_bytes())


def read_prepared(root: Path) -> Source:
    """Both readers: the one that trains, and the one that copies."""
    for path in [*root.glob("index-*"), *root.glob("frames-*")]:
        path.unlink()
    seen = Dataset(root, 16, lambda images: images)
    assert len(seen.images) == len(seen.actions) == len(seen.instructions) == len(seen.last)
    return Prepared(root)


DATASETS = (
    Files("RLDS", make_rlds, Rlds, {"json": bent_json, "00001": record}),
    Files(
        "LIBERO's HDF5",
        lambda root: published.libero(root / "bowl_demo.hdf5", [2, 3]) and None,
        lambda root: LiberoHdf5([root], no_noops=True),
        {"hdf5": group},
    ),
    Files("LeRobot v3", partial(make_lerobot, video=False), LeRobotV3, {"json": bent_json}),
    Files("LeRobot's video", partial(make_lerobot, video=True), LeRobotV3, {"json": bent_json}),
    Files("prepared", make_prepared, read_prepared, {"json": bent_json}),
)
TARGETS = (
    Target("pictures", lambda rng: damaged(rng, rng.choice(PICTURES)), check_picture),
    Target("tf.train.Example", lambda rng: damaged(rng, EXAMPLE), check_example),
    *(files.target() for files in DATASETS),
)
