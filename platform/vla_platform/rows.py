"""What is kept of an episode: who was tested on what (`Episode`), and what came of it (`Row`)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from envs.hashing import stable_hash

SCHEMA = 2
"""Version of the fields below; part of every key, raised when their meaning changes."""
PROTOCOL = 1
"""Version of how an episode is run; raised when the same episode would come out differently."""

_PLAIN = {"str": str, "int": int, "bool": bool, "float": float}


def _check_types(record: Any) -> None:
    """TypeError for values that only look right: True, 1, 1.0 and numpy's 1 hash differently."""
    for name, field in record.__dataclass_fields__.items():
        value, wanted = getattr(record, name), _PLAIN.get(field.type)
        if wanted is not None and type(value) is not wanted:
            raise TypeError(
                f"{type(record).__name__}.{name} is {value!r} ({type(value).__name__});"
                f" give a plain {wanted.__name__}."
            )
        if wanted is int and not -(2**63) <= value < 2**63:
            raise ValueError(f"{type(record).__name__}.{name} does not fit 64 bits: {value}")


def _fields(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


@dataclass(frozen=True)
class Cell:
    """What all episodes of one score share.

    policy: weights digest; for a remote policy what its server declares plus the evaluation's id.
    instruction_mode: "own", or how the instruction was altered ("wrong_word", …).
    horizon: actions executed before looking again. profile: "paper" or "official", the run's.
    fingerprint: hash of the environment fingerprint (`Ledger.keep_fingerprint`).
    """

    policy: str
    benchmark: str
    horizon: int
    fingerprint: str
    instruction_mode: str = "own"
    profile: str = "paper"
    precision: str = "fp32"
    protocol: int = PROTOCOL

    def __post_init__(self) -> None:
        _check_types(self)

    @functools.cached_property
    def id(self) -> str:
        """16 hex digits."""
        return stable_hash({"schema": SCHEMA, **_fields(self)})[:16]

    def episode(self, task: str, initial_state: int, seed: int, instruction: str) -> Episode:
        return Episode(self, task, initial_state, seed, instruction)


@dataclass(frozen=True)
class Episode:
    """One trial. Its key is the hash of everything that can change its outcome."""

    cell: Cell
    task: str
    initial_state: int
    seed: int
    instruction: str

    def __post_init__(self) -> None:
        _check_types(self)

    @functools.cached_property
    def key(self) -> str:
        """64 hex digits."""
        return stable_hash({"schema": SCHEMA, **self.fields()})

    def fields(self) -> dict[str, Any]:
        """The cell's fields and its own, flat."""
        own = _fields(self)
        return {**_fields(own.pop("cell")), **own}


@dataclass(frozen=True)
class Row:
    """A finished episode.

    success: by the benchmark's rule; success_any, success_last: at some step, at the last one.
    completed: subtasks done in a row (CALVIN's chains); None stands for 0 or 1, as `success`.
    final_frame: hash of what was seen last, by which a replay is told from another episode.
    video: store key or "". error_count: infrastructure errors that were retried before this.
    wall_s: seconds. finished_at: seconds since 1970, UTC. writer: unique to this commit.
    """

    episode: Episode
    success: bool
    success_any: bool
    success_last: bool
    steps: int
    replans: int
    wall_s: float
    finished_at: float
    writer: str
    node: str = ""
    worker: str = ""
    video: str = ""
    error_count: int = 0
    completed: int | None = None
    final_frame: str = ""

    def __post_init__(self) -> None:
        _check_types(self)
        if self.completed is None:
            object.__setattr__(self, "completed", int(self.success))

    def flat(self) -> dict[str, Any]:
        own = _fields(self)
        episode: Episode = own.pop("episode")
        return {"schema": SCHEMA, "key": episode.key, **episode.fields(), **own}


_ARROW = {"str": pa.string(), "int": pa.int64(), "bool": pa.bool_(), "float": pa.float64()}


OUTCOME = (
    "success",
    "success_any",
    "success_last",
    "steps",
    "replans",
    "completed",
    "final_frame",
)
"""The columns that playing the same episode again must repeat."""


def _columns() -> Iterator[pa.Field]:
    yield pa.field("schema", pa.int64(), nullable=False)
    yield pa.field("key", pa.string(), nullable=False)
    for record in (Cell, Episode, Row):
        for field in dataclasses.fields(record):
            kind = str(field.type).removesuffix(" | None")
            if kind in _ARROW:
                yield pa.field(field.name, _ARROW[kind], nullable=False)


ROWS = pa.schema(list(_columns()))
"""The columns of every table of rows, loose or compacted."""


class BrokenRowsError(Exception):
    """Stored rows that cannot be trusted; the message says which, why, and what to do."""


def encode(table: pa.Table) -> bytes:
    """Rows as Parquet. Equal tables give equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.combine_chunks(), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def encode_row(row: Row) -> bytes:
    """One row as Parquet, without the statistics and dictionaries that only help many."""
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist([row.flat()], ROWS)
    plain = {"use_dictionary": False, "write_statistics": False, "store_schema": False}
    # Its key covers what was asked; what came of it has nothing else that shows a flipped bit.
    pq.write_table(table, sink, compression="none", write_page_checksum=True, **plain)
    return sink.getvalue().to_pybytes()


def decode(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """Rows, or "schema" and the named columns, from Parquet; BrokenRowsError if not ours."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        if not file.schema_arrow.equals(ROWS):
            raise BrokenRowsError(_schema_difference(file.schema_arrow))
        wanted = None if columns is None else ["schema", *columns]
        table = file.read(columns=wanted, use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:  # names may be no UTF-8
        raise BrokenRowsError(f"not readable as Parquet ({type(error).__name__})") from None
    versions = set(table["schema"].to_pylist()) - {SCHEMA}
    if versions:
        raise BrokenRowsError(f"written with schema {versions}, this code reads {SCHEMA}")
    return table


def decode_row(data: bytes, key: str) -> pa.Table:
    """The one row that belongs under `key`; BrokenRowsError for anything else."""
    table = decode(data)
    if table.num_rows != 1:
        raise BrokenRowsError(f"holds {table.num_rows} rows instead of one")
    if table["key"][0].as_py() != key or episode_of(table.to_pylist()[0]).key != key:
        raise BrokenRowsError("holds the row of another episode")
    return table


def episode_of(flat: dict[str, Any]) -> Episode:
    """The episode a flat row is about."""
    cell = Cell(**{name: flat[name] for name in Cell.__dataclass_fields__})
    return cell.episode(flat["task"], flat["initial_state"], flat["seed"], flat["instruction"])


def _schema_difference(found: pa.Schema) -> str:
    theirs = {(field.name, str(field.type)) for field in found}
    ours = {(field.name, str(field.type)) for field in ROWS}
    names = sorted({name for name, _ in theirs ^ ours})
    return f"has other columns than schema {SCHEMA}: {', '.join(names) or 'their order'}"
