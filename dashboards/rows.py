"""Stored rows of cells, read back with everything that is wrong with them kept apart.

A cell's rows are one compacted file, loose files of one row each, or both (see the ledger's
layout in `vla_platform.ledger`). Nothing that cannot be trusted enters a number.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dashboards.archive import Archive
from dashboards.cells import (
    BROKEN,
    COMPLETE,
    UNFINISHED,
    Cell,
    Failure,
    Problem,
    last_line,
    tasks_of,
)

SCHEMAS = (1, 2)
"""Versions whose columns below mean the same; rows of others are shown as such."""
COLUMNS = {
    "schema": pa.int64(),
    "key": pa.string(),
    "task": pa.string(),
    "initial_state": pa.int64(),
    "seed": pa.int64(),
    "instruction": pa.string(),
    "success": pa.bool_(),
    "completed": pa.int64(),
    "steps": pa.int64(),
    "wall_s": pa.float64(),
    "finished_at": pa.float64(),
    "error_count": pa.int64(),
    "writer": pa.string(),
    "video": pa.string(),
    "policy": pa.string(),
    "benchmark": pa.string(),
    "horizon": pa.int64(),
    "instruction_mode": pa.string(),
    "fingerprint": pa.string(),
    "profile": pa.string(),
    "precision": pa.string(),
    "protocol": pa.int64(),
}
"""The columns that are read; a test holds them against the ledger's."""
IDENTITY = ("schema", *tuple(COLUMNS)[-8:])
"""Those that all rows of a cell share with its cell.json."""
ROWS = pa.schema(list(COLUMNS.items()))


@dataclass
class _Keys:
    """A cell's keys by what they are."""

    compacted: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


KnownCells = dict[str, tuple[list[str], Cell]]
"""Cells read before, with their keys: nothing under a key ever changes, so equal keys are
equal cells."""


def read_cells(archive: Archive, known: KnownCells | None = None) -> list[Cell]:
    """Every cell of the store, by id; those in `known` only where there is something new."""
    known = {} if known is None else known
    by_cell: dict[str, _Keys] = defaultdict(_Keys)
    for key in archive.list("cells"):
        parts = key.split("/")
        keys = by_cell[parts[1]]
        if parts[2] == "episodes":
            keys.loose.append(key)
        elif parts[2] == "errors":
            keys.errors.append(key)
        elif parts[2].startswith("cell-"):
            keys.compacted.append(key)

    def read(cell: tuple[str, _Keys]) -> Cell:
        name, keys = cell
        every = [*keys.compacted, *keys.loose, *keys.errors]
        if name not in known or known[name][0] != every:
            known[name] = every, _read_cell(archive, name, keys)
        return known[name][1]

    return list(archive.map(read, sorted(by_cell.items())))


def _read_cell(archive: Archive, name: str, keys: _Keys) -> Cell:
    problems: list[Problem] = []
    fields = _describe(archive, name, problems)
    compacted = _tables(archive.each(keys.compacted, _compacted), problems)
    done = {key for table in compacted for key in table["key"].to_pylist()}
    left = [key for key in keys.loose if _key_of(key) not in done]
    loose = _tables(archive.each(left, _loose), problems)
    table = pa.concat_tables([*compacted, *loose] or [ROWS.empty_table()]).cast(ROWS)
    table = _each_once(table.combine_chunks(), name, problems)
    problems += _strangers(table, fields, name)
    finished = set(table["key"].to_pylist())
    failures = tuple(archive.each(keys.errors, lambda key, data: _failure(data, finished)))
    status = BROKEN if problems else COMPLETE
    if not problems and (not compacted or left or any(not f.finished for f in failures)):
        status = UNFINISHED
    return Cell(name, fields, status, table, tasks_of(table), tuple(problems), failures, len(left))


def _describe(archive: Archive, name: str, problems: list[Problem]) -> dict[str, Any]:
    key = f"cells/{name}/cell.json"
    try:
        fields = json.loads(archive.get(key))
        if fields["schema"] not in SCHEMAS:
            problems.append(Problem(key, _foreign([fields["schema"]])))
        return dict(fields)
    except (AttributeError, KeyError, TypeError, ValueError):
        problems.append(Problem(key, "does not describe a cell"))
        return {}


def _tables(found: Iterable[pa.Table | Problem], problems: list[Problem]) -> list[pa.Table]:
    """The tables; problems go to their list."""
    tables = []
    for each in found:
        if isinstance(each, Problem):
            problems.append(each)
        else:
            tables.append(each)
    return tables


def _compacted(key: str, data: bytes) -> pa.Table | Problem:
    digest = hashlib.sha256(data).hexdigest()[:32]
    if not key.endswith(f"/cell-{digest}.parquet"):
        return Problem(key, "its bytes have changed since it was written")
    return _decode(key, data)


def _loose(key: str, data: bytes) -> pa.Table | Problem:
    table = _decode(key, data)
    if isinstance(table, pa.Table) and table["key"].to_pylist() != [_key_of(key)]:
        return Problem(key, "does not hold the one row its name promises")
    return table


def _key_of(key: str) -> str:
    return key.rpartition("/")[2].removesuffix(".parquet")


def _decode(key: str, data: bytes) -> pa.Table | Problem:
    """The columns that are shown; anything but readable rows of our schema is a problem."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        theirs = file.schema_arrow
        wrong = [
            name
            for name, kind in COLUMNS.items()
            if name not in theirs.names or theirs.field(name).type != kind
        ]
        wanted = list(COLUMNS) if not wrong else {"schema"} & set(theirs.names)
        table = file.read(columns=list(wanted), use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:  # names may be no UTF-8
        return Problem(key, f"not readable as Parquet ({type(error).__name__})")
    versions = set(table["schema"].to_pylist()) if "schema" in theirs.names else set()
    if versions - set(SCHEMAS):
        return Problem(key, _foreign(versions - set(SCHEMAS)))
    if wrong:
        return Problem(key, f"lacks columns that every row has: {', '.join(wrong)}")
    return table.select(list(COLUMNS)).replace_schema_metadata()


def _foreign(versions: Iterable[object]) -> str:
    found, known = (", ".join(sorted(map(str, these))) for these in (versions, SCHEMAS))
    return f"written with schema {found}, this reads {known}"


def _strangers(table: pa.Table, fields: Mapping[str, Any], name: str) -> list[Problem]:
    """Rows that say of themselves that they belong to another cell."""
    return [
        Problem(f"cells/{name}", f"holds rows whose {column} is not the cell's")
        for column in IDENTITY
        if fields and set(table[column].unique().to_pylist()) - {fields.get(column)}
    ]


def _each_once(table: pa.Table, name: str, problems: list[Problem]) -> pa.Table:
    """The first row of every key; two different commits of one key are a problem."""
    first: dict[str, int] = {}
    keys, writers = table["key"].to_pylist(), table["writer"].to_pylist()
    for index, key in enumerate(keys):
        known = first.setdefault(key, index)
        if writers[known] != writers[index]:
            problems.append(Problem(f"cells/{name} {key}", "two different rows claim this key"))
    return table if len(first) == table.num_rows else table.take(list(first.values()))


def _failure(data: bytes, finished: set[str]) -> Failure:
    try:
        entry = json.loads(data)
        key = str(entry["key"])
        return Failure(
            key,
            str(entry["task"]),
            int(entry["initial_state"]),
            str(entry["cause"]),
            last_line(str(entry["message"]))[:400],
            key in finished,
        )
    except (KeyError, TypeError, ValueError):
        return Failure("?", "?", -1, "unreadable", "this error record cannot be read", False)
