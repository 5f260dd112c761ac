"""The append-only record of finished episodes: each key once, whatever crashes.

    cells/<cell id>/cell.json                     what the id stands for
    cells/<cell id>/episodes/<key>.parquet        one row, put with `put_new`
    cells/<cell id>/cell-<sha of it>.parquet      all rows, once none is missing
    cells/<cell id>/errors/<key>/<token>.json     infrastructure errors, never results
    fingerprints/<hash>.json                      package versions, renderer, assets

A compacted file makes its loose rows ignorable, not wrong: reading merges both. Nothing here
deletes but `prune`, which a role of its own runs while no driver does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from envs.hashing import canonical_json, stable_hash
from vla_platform.cells import CellRows, Problem, Summary, score
from vla_platform.rows import (
    OUTCOME,
    ROWS,
    SCHEMA,
    BrokenRowsError,
    Cell,
    Episode,
    Row,
    decode,
    decode_row,
    encode,
    encode_row,
)
from vla_platform.scrub import shortened
from vla_platform.store import Store

READERS = 8
"""Threads that fetch loose rows: on S3 the wait is the network's, on a folder parsing is."""
_BATCH = 1_000
"""Loose rows per merge: a table of 100k one-row chunks would take a gigabyte."""
_ORDER = [(name, "ascending") for name in ("task", "initial_state", "seed", "key")]


@dataclass(frozen=True)
class Ledger:
    """Small and picklable, like its store."""

    store: Store
    _described: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def commit(self, row: Row) -> bool:
        """Keep a finished episode. True if this call did, False if it was there already.

        When the call raises, repeat it with the same row: its writer token tells the store
        whether the first attempt had taken effect. The video must have been put before.
        """
        cell, key = row.episode.cell, row.episode.key
        self.describe(cell)
        return self.store.put_new(_loose(cell, key), encode_row(row), writer=row.writer)

    def describe(self, cell: Cell) -> None:
        """Keep what the cell's id stands for; free after the first time."""
        if cell.id in self._described:
            return
        name = f"cells/{cell.id}/cell.json"
        if not self.store.exists(name):  # a contended put_new can take SeaweedFS seconds
            text = canonical_json({"schema": SCHEMA, **dataclasses.asdict(cell)})
            self.store.put_new(name, text.encode())
        self._described.add(cell.id)

    def cells(self) -> Iterator[Cell]:
        """Every cell ever begun."""
        for name in self.store.children("cells"):
            key = f"cells/{name}cell.json"
            try:
                yield _cell_of(key, self.store.get(key))
            except KeyError as error:
                raise BrokenRowsError(f"there is no {key}") from error

    def read(self, cell: Cell) -> CellRows:
        """All rows of the cell, compacted and loose; what cannot be trusted is listed apart."""
        problems: list[Problem] = []
        names = self._loose_keys(cell)  # first: what is pruned after this is in the files
        tables = list(self._compacted(cell, problems))
        done = {key for table in tables for key in table["key"].to_pylist()}
        loose = sorted(names - done)
        tables += self._read_loose(cell, loose, problems)
        table = _each_once(pa.concat_tables([ROWS.empty_table(), *tables]), cell, problems)
        return CellRows(table.sort_by(_ORDER), tuple(problems), len(loose))

    def missing(self, cell: Cell, episodes: Sequence[Episode]) -> list[Episode]:
        """Those of the episodes that have no row yet, in the order given."""
        wanted = _keys(cell, episodes)
        tables = self._compacted(cell, [], ["key"])
        absent = wanted.keys() - {key for table in tables for key in table["key"].to_pylist()}
        if absent:  # names alone tell; a finished cell is not even listed
            absent -= self._loose_keys(cell)
        return [episode for key, episode in wanted.items() if key in absent]

    def compact(self, cell: Cell, episodes: Sequence[Episode]) -> bool:
        """Put all rows into one file if no episode is missing; False if one is.

        Two drivers may do so at once: equal rows make equal bytes and therefore one name,
        and a larger set of episodes makes a second file, which reading merges.
        """
        wanted = _keys(cell, episodes)
        tables = self._compacted(cell, [], ["key"])
        if wanted.keys() <= {key for table in tables for key in table["key"].to_pylist()}:
            return True
        table = self.read(cell).require_sound()
        if not wanted.keys() <= set(table["key"].to_pylist()):
            return False
        data = encode(table)
        self.store.put_new(f"cells/{cell.id}/cell-{_digest(data)}.parquet", data)
        return True

    def surplus(self, cell: Cell) -> list[str]:
        """Keys in the store of the loose rows that a sound compacted file holds."""
        problems: list[Problem] = []
        tables = list(self._compacted(cell, problems, ["key"]))
        CellRows(ROWS.empty_table(), tuple(problems)).require_sound()
        done = {key for table in tables for key in table["key"].to_pylist()}
        return [_loose(cell, key) for key in sorted(done & self._loose_keys(cell))]

    def prune(self, cell: Cell) -> int:
        """Delete the cell's surplus; returns how many rows.

        Only while no driver runs: one that began before could commit a pruned key once more
        (reading would still return the compacted row alone).
        """
        found = self.surplus(cell)
        for key in found:
            self.store.delete(key)
        return len(found)

    def summary(
        self, cell: Cell, episodes: Sequence[Episode], allow_missing: bool = False
    ) -> Summary:
        """Successes and trials per task over the given episodes, no others.

        IncompleteCellError when some have no row, unless `allow_missing`: then the result
        says how many. BrokenRowsError when a row cannot be trusted, always.
        """
        return score(cell, _keys(cell, episodes), self.read(cell), allow_missing)

    def keep_fingerprint(self, fingerprint: Mapping[str, str]) -> str:
        """Store an environment fingerprint; its hash is what `Cell.fingerprint` holds."""
        plain = dict(fingerprint)
        digest = stable_hash(plain)
        self.store.put_new(f"fingerprints/{digest}.json", canonical_json(plain).encode())
        return digest

    def fingerprint(self, digest: str) -> dict[str, str]:
        """What `keep_fingerprint` was given; KeyError when it never was."""
        return dict(json.loads(self.store.get(f"fingerprints/{digest}.json")))

    def record_error(self, episode: Episode, cause: str, message: str, node: str = "") -> None:
        """Keep an infrastructure error (cause: one word) beside the rows, never as a result."""
        entry = {
            "schema": SCHEMA,
            "key": episode.key,
            "task": episode.task,
            "initial_state": episode.initial_state,
            "seed": episode.seed,
            "cause": cause,
            "message": shortened(message),
            "node": node,
            "at": time.time(),
        }
        name = f"cells/{episode.cell.id}/errors/{episode.key}/{uuid.uuid4().hex}.json"
        self.store.put_new(name, canonical_json(entry).encode())

    def errors(self, cell: Cell) -> list[dict[str, object]]:
        """Every recorded infrastructure error of the cell, oldest first."""
        names = self.store.list(f"cells/{cell.id}/errors/")
        with ThreadPoolExecutor(READERS) as pool:
            found = [json.loads(data) for data in pool.map(self.store.get, names)]
        return sorted(found, key=lambda entry: entry["at"])

    def _loose_keys(self, cell: Cell) -> set[str]:
        names = self.store.children(f"cells/{cell.id}/episodes")
        return {name.removesuffix(".parquet") for name in names}

    def _compacted(
        self, cell: Cell, problems: list[Problem], columns: list[str] | None = None
    ) -> Iterator[pa.Table]:
        """The cell's compacted files; those whose bytes are not what their name says go apart."""
        for name in self.store.children(f"cells/{cell.id}"):
            if not name.startswith("cell-"):
                continue
            key = f"cells/{cell.id}/{name}"
            data = self.store.get(key)
            try:
                if name != f"cell-{_digest(data)}.parquet":
                    raise BrokenRowsError("its bytes have changed since it was written")
                yield decode(data, columns)
            except BrokenRowsError as error:
                problems.append(Problem(key, str(error)))

    def _read_loose(
        self, cell: Cell, keys: Sequence[str], problems: list[Problem]
    ) -> Iterator[pa.Table]:
        def fetch(key: str) -> pa.Table | Problem:
            name = _loose(cell, key)
            try:
                return decode_row(self.store.get(name), key)
            except BrokenRowsError as error:
                return Problem(name, str(error))

        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(keys), _BATCH):
                found = list(pool.map(fetch, keys[start : start + _BATCH]))
                problems.extend(each for each in found if isinstance(each, Problem))
                tables = [each for each in found if not isinstance(each, Problem)]
                yield pa.concat_tables([ROWS.empty_table(), *tables]).combine_chunks()


def _cell_of(key: str, data: bytes) -> Cell:
    try:
        fields = dict(json.loads(data))
        fields.pop("schema")
        return Cell(**fields)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise BrokenRowsError(f"{key} does not describe a cell") from error


def _loose(cell: Cell, key: str) -> str:
    return f"cells/{cell.id}/episodes/{key}.parquet"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _keys(cell: Cell, episodes: Iterable[Episode]) -> dict[str, Episode]:
    """The episodes by key; ValueError when one belongs elsewhere or is given twice."""
    found: dict[str, Episode] = {}
    for episode in episodes:
        if episode.cell != cell:
            raise ValueError(f"episode {episode} is not of cell {cell.id}")
        if episode.key in found:
            raise ValueError(f"episode {episode} is given twice")
        found[episode.key] = episode
    return found


def _each_once(table: pa.Table, cell: Cell, problems: list[Problem]) -> pa.Table:
    """The first row of every key. Repeats come from overlapping compacted files and are the
    same commit; if they are not, somebody wrote what they should not have."""
    keys = table["key"].to_pylist()
    if len(set(keys)) == len(keys):
        return table
    first: dict[str, int] = {}
    told = ("writer", *OUTCOME)
    claims = list(zip(*(table[name].to_pylist() for name in told), strict=True))
    for index, key in enumerate(keys):
        known = first.setdefault(key, index)
        if claims[known] != claims[index]:
            problems.append(Problem(_loose(cell, key), "two different rows claim this key"))
    return table.take(list(first.values()))
