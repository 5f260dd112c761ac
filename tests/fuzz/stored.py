"""What the store and its files hold, read back after damage: rows, JSON, keys, FAST tokens."""

from __future__ import annotations

import dataclasses
import json
import os.path
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
from vla_platform import artifacts, ledger
from vla_platform.rows import (
    ROWS,
    SCHEMA,
    BrokenRowsError,
    Cell,
    Row,
    decode,
    decode_row,
    encode,
    encode_row,
)
from vla_platform.store import check_key
from vla_platform.store_folder import FolderStore

from envs import tabletop
from envs.api import Benchmark
from envs.worker import benchmark_of
from tests.fuzz.damage import Target, altered, damaged, refusal
from vlm4vla import export
from vlm4vla.aux import fast
from vlm4vla.aux.fast import Fast
from vlm4vla.data.dataset import Manifest, Shard
from vlm4vla.data.normalise import Normaliser, Statistics
from vlm4vla.run import Run

BENCHMARK = tabletop.BENCHMARKS["tabletop"]
CELL = Cell("w" * 64, "tabletop", 4, "f" * 64)
COUNT = 4


def row(number: int) -> Row:
    episode = CELL.episode("reach", number, 0, "reach the red block")
    return Row(episode, number % 2 == 0, True, False, 9, 3, 1.25, 1.7e9, f"writer {number}", "n")


LOOSE = encode_row(row(0))
TABLE = pa.Table.from_pylist([row(number).flat() for number in range(COUNT)], ROWS)
WHOLE = encode(TABLE)
LOOSE_TABLE = decode_row(LOOSE, row(0).episode.key)


def check_loose(data: bytes) -> str:
    """Accepted bytes hold the very row: a flipped outcome would enter a score."""
    try:
        found = decode_row(data, row(0).episode.key)
    except BrokenRowsError as error:
        return refusal(error)
    assert found.equals(LOOSE_TABLE), found.to_pylist()
    return "accepted"


def check_whole(data: bytes) -> str:
    """A compacted file's name holds its digest, so here only what is not Parquet is refused."""
    try:
        found = decode(data)
    except BrokenRowsError as error:
        return refusal(error)
    assert found.schema.equals(ROWS) and set(found["schema"].to_pylist()) <= {SCHEMA}
    return "accepted"


def foreign(rng: Random) -> bytes:
    """A sound file of another schema, another version or another number of rows."""
    table = TABLE.slice(0, rng.choice((0, 1, 1, 1, 2)))
    name = rng.choice(ROWS.names)
    place = ROWS.get_field_index(name)
    act = rng.randrange(5)
    if act == 0:
        table = table.drop_columns(name)
    elif act == 1:
        kind = rng.choice((pa.string(), pa.int32(), pa.float32(), pa.list_(pa.int64())))
        table = table.set_column(place, name, pa.nulls(len(table), kind))
    elif act == 2:
        table = table.append_column(rng.choice((name, "more")), table[name])
    elif act == 3:
        table = table.set_column(
            0, ROWS.field(0), pa.array([rng.choice((1, 3, -1))] * len(table), pa.int64())
        )
    else:
        table = table.select(rng.sample(ROWS.names, len(ROWS)))
    return encode(table)


Read = Callable[[bytes], Any]


def check_json(read: Read, sound: Callable[[Any], bool], data: bytes) -> str:
    """What `read` does not refuse is right."""
    try:
        found = read(data)
    except (ValueError, BrokenRowsError) as error:
        return refusal(error)
    assert sound(found), found
    return "accepted"


def altered_json(value: Any, rng: Random) -> bytes:
    if rng.random() < 0.3:
        return damaged(rng, json.dumps(value).encode())
    return json.dumps(altered(rng, value)).encode()


def told(name: str, value: Any, read: Read, sound: Callable[[Any], bool]) -> Target:
    """Something that is kept as JSON. sound: whether what was read can be what was meant."""
    kept = json.loads(json.dumps(value))
    assert sound(read(json.dumps(kept).encode()))
    return Target(name, partial(altered_json, kept), partial(check_json, read, sound))


def numbers(values: Any) -> bool:
    found = np.array(values)
    return found.shape == (7,) and bool(np.isfinite(found).all())


def sound_statistics(found: Statistics) -> bool:
    return all(numbers(column) for column in vars(found).values())


def sound_manifest(found: Manifest) -> bool:
    again = Manifest.from_bytes(found.to_bytes())
    rows = [shard.rows for shard in found.shards]
    whole = all(type(n) is int and n >= 0 for n in rows) and sum(rows) == found.frames
    return again == found and whole and sound_statistics(found.statistics)


def sound_policy(found: tuple[Run, int, dict[str, Any]]) -> bool:
    run, chunk, about = found
    kinds = [type(x) for x in (run.backbone, run.seed, run.lr, run.image_px, chunk)]
    assert kinds == [str, int, float if run.lr is not None else type(None), int, int]
    run.resolved(BENCHMARK.recipe)
    return about["action_spec"].gripper_close in (1, -1) and run.seed >= 0 < run.image_px


def sound_cell(found: Cell) -> bool:
    return len(found.id) == 16 and type(found.horizon) is int


def sound_checkpoint(found: artifacts.Checkpoint) -> bool:
    return found.prefix.startswith("policies/run/step-") and isinstance(found.digest, str)


def sound_fast(found: tuple[int, float, Normaliser]) -> bool:
    chunk, scale, normaliser = found
    return chunk > 0 and 0 < scale < np.inf and sound_statistics(normaliser.statistics)


STATISTICS = Statistics.of(np.linspace(-1, 1, 70, dtype=np.float32).reshape(10, 7))
NORMALISER = Normaliser("quantile", STATISTICS)
SHARDS = (Shard("shard-00000.parquet", 6, "a" * 64), Shard("shard-00001.parquet", 4, "b" * 64))
MANIFEST = Manifest("d", "here", 2, 10, SHARDS, STATISTICS, "png", ("file: row 3: no frames",))
RUN = Run("tiny-paligemma-1", "tabletop").resolved(BENCHMARK.recipe)
POLICY = {
    "run": dataclasses.asdict(RUN),
    "chunk": 4,
    "action_spec": dataclasses.asdict(BENCHMARK.action_spec),
    "overrides": dict(BENCHMARK.recipe.overrides),
    "normaliser": NORMALISER.to_json(),
}
DESCRIBED = {"schema": SCHEMA, **dataclasses.asdict(CELL)}
MARKER = {
    "digest": "a" * 64,
    "step": 3,
    "evaluated": True,
    "attempt": "x",
    "state": {"a": "b"},
    "folder": "x",
}
TOLD = {"chunk": 4, "scale": 10.0, "normaliser": NORMALISER.to_json()}


def opened(data: bytes) -> Any:
    """A benchmark's row as a child is told it."""
    try:
        return benchmark_of(json.loads(data))
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error  # the worker answers so


def sound_row(found: Benchmark) -> bool:
    return found.action_spec.gripper_close in (1, -1)


FAST = Fast.fit(np.random.default_rng(0).uniform(-1, 1, (40, 4, 7)).astype(np.float32), NORMALISER)


def tokens(rng: Random) -> list[Any]:
    """A chunk's tokens, or what a model makes up."""
    chunk = np.array([rng.uniform(-1.5, 1.5) for _ in range(28)], np.float32).reshape(1, 4, 7)
    found: list[Any] = FAST.encode(chunk)[0]
    act = rng.randrange(5)
    if act == 0:
        return found
    if act == 1:
        return found[: rng.randrange(len(found))]
    if act == 2:
        found[rng.randrange(len(found))] = rng.randrange(FAST.size)
    elif act == 3:
        strange = (-1, FAST.size, 2**63, 2**70, None, "1", 1.5, float("nan"), [], True)
        found[rng.randrange(len(found))] = rng.choice(strange)
    else:
        found = [rng.randrange(FAST.size) for _ in range(rng.choice((0, 1, 20, 28, 29)))]
    return found


def check_tokens(found: list[Any]) -> str:
    try:
        chunk = FAST.decode([found])
        held = FAST.unpack([found])
    except ValueError as error:
        return refusal(error)
    assert chunk.shape == held.shape == (1, 4, 7) and np.isfinite(chunk).all()
    text = "".join(FAST.packing.id_to_token(int(token)) for token in found)
    assert [ord(letter) - ord(text[0]) for letter in text] == (held - held.flat[0]).ravel().tolist()
    return "accepted"


def key(rng: Random) -> str:
    letters = "a/.-_~\\ \n\x00é:@=+,0Z"
    if rng.random() < 0.5:
        return "".join(rng.choices(letters, k=rng.randrange(12)))
    return rng.choice(("", "a/", "../", "/")) + "/".join(
        rng.choice(("a", "..", ".", "", ".tmp", "x" * 250, "b.c", "%2e", "~", "-"))
        for _ in range(rng.randrange(1, 6))
    )


FOLDER = FolderStore("/store/of/a/study", 0.0)


def check_store_key(found: str) -> str:
    try:
        check_key(found)
    except ValueError as error:
        return refusal(error)
    path = str(FOLDER._path(found))
    assert os.path.normpath(path) == path == f"{FOLDER.url}/{found}"
    return "accepted"


TARGETS = (
    Target("loose rows", lambda rng: damaged(rng, LOOSE), check_loose),
    Target("compacted rows", lambda rng: damaged(rng, WHOLE), check_whole),
    Target("rows of other schemas", foreign, check_loose),
    told("cell.json", DESCRIBED, partial(ledger._cell_of, "key"), sound_cell),
    told("complete.json", MARKER, partial(artifacts._marked, "run", "key"), sound_checkpoint),
    told("manifest.json", dataclasses.asdict(MANIFEST), Manifest.from_bytes, sound_manifest),
    told("policy.json", POLICY, export.described, sound_policy),
    told("fast.json", TOLD, fast._described, sound_fast),
    told("benchmark rows", dataclasses.asdict(BENCHMARK), opened, sound_row),
    Target("FAST tokens", tokens, check_tokens),
    Target("store keys", key, check_store_key),
)
