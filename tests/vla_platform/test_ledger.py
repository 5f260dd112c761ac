"""Each episode once, cells compacted atomically, nothing averaged that is not whole or sound."""

from __future__ import annotations

import dataclasses
import json
import pickle
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from vla_platform.cells import IncompleteCellError
from vla_platform.ledger import Ledger, _digest
from vla_platform.rows import (
    ROWS,
    BrokenRowsError,
    Cell,
    Episode,
    Row,
    encode,
    encode_row,
)
from vla_platform.store import Store, open_store

from tests.faulty_proxy import Fault, FaultyProxy

CELL = Cell(policy="w" * 64, benchmark="tabletop", horizon=4, fingerprint="f" * 64)
EPISODES = [
    CELL.episode(f"task{task}", state, 7, f"push {task}") for task in range(3) for state in range(4)
]


@pytest.fixture
def ledger(store: Store) -> Ledger:
    return Ledger(store)


@pytest.fixture
def local(tmp_path: Path) -> Ledger:
    return Ledger(open_store(str(tmp_path / "ledger")))


def row_of(episode: Episode, **changed: object) -> Row:
    won = episode.initial_state % 2 == 0
    outcome = {"success": won, "success_any": True, "success_last": won, "steps": 40, "replans": 10}
    rest = {"wall_s": 1.5, "finished_at": time.time(), "writer": uuid.uuid4().hex, "node": "n1"}
    return Row(episode, **{**outcome, **rest, **changed})  # type: ignore[arg-type]


def commit_all(ledger: Ledger, episodes: list[Episode]) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ledger.commit, map(row_of, episodes)))


def put_raw(ledger: Ledger, key: str, data: bytes) -> None:
    ledger.store.put(f"cells/{CELL.id}/episodes/{key}.parquet", data)


# Committing and reading


def test_commit_once(ledger: Ledger):
    row = row_of(EPISODES[0])
    assert ledger.commit(row)
    assert not ledger.commit(row_of(EPISODES[0], success=False, steps=1))
    assert ledger.read(CELL).table.to_pylist() == [row.flat()]


def test_missing_keeps_the_order_and_shrinks(ledger: Ledger):
    assert ledger.missing(CELL, EPISODES) == EPISODES
    commit_all(ledger, EPISODES[2:5])
    assert ledger.missing(CELL, EPISODES) == EPISODES[:2] + EPISODES[5:]


def test_rows_come_sorted_and_typed(ledger: Ledger):
    commit_all(ledger, EPISODES[::-1])
    rows = ledger.read(CELL)
    assert rows.table.schema.equals(ROWS) and not rows.problems
    seen = [(row["task"], row["initial_state"]) for row in rows.table.to_pylist()]
    assert seen == sorted(seen) and len(seen) == len(EPISODES)


def test_an_empty_cell_reads_as_no_rows(ledger: Ledger):
    assert ledger.read(CELL).table.num_rows == 0
    assert not ledger.compact(CELL, EPISODES)
    assert list(ledger.cells()) == []


def test_cells_describe_themselves(ledger: Ledger):
    other = dataclasses.replace(CELL, instruction_mode="wrong_word")
    ledger.commit(row_of(EPISODES[0]))
    ledger.commit(row_of(other.episode("t", 0, 0, "push")))
    assert sorted(ledger.cells(), key=lambda cell: cell.id) == sorted(
        [CELL, other], key=lambda cell: cell.id
    )


def test_a_ledger_pickles(ledger: Ledger):
    ledger.commit(row_of(EPISODES[0]))
    copy = pickle.loads(pickle.dumps(ledger))
    assert copy == ledger and copy.missing(CELL, EPISODES) == EPISODES[1:]


def test_two_drivers_on_one_cell_commit_each_key_once(ledger: Ledger):
    jobs = [row_of(episode) for episode in EPISODES for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(ledger.commit, jobs))
    kept = {row["writer"] for row in ledger.read(CELL).table.to_pylist()}
    assert sum(won) == len(EPISODES)
    assert kept == {row.writer for row, first in zip(jobs, won, strict=True) if first}


def test_a_commit_whose_answer_was_lost(proxy: FaultyProxy):
    ledger = Ledger(open_store(f"s3://exp/{uuid.uuid4().hex}?endpoint={proxy.endpoint}"))
    ledger.describe(CELL)
    proxy.plan(Fault(lost=True))
    assert ledger.commit(row_of(EPISODES[0]))
    assert ledger.read(CELL).table.num_rows == 1


def test_foreign_episodes_are_refused(local: Ledger):
    stranger = dataclasses.replace(CELL, horizon=1).episode("t", 0, 0, "push")
    for action in (local.missing, local.compact, local.summary):
        with pytest.raises(ValueError, match="not of cell"):
            action(CELL, [stranger])
        with pytest.raises(ValueError, match="given twice"):
            action(CELL, [EPISODES[0], EPISODES[0]])


# Compacting and pruning


def names(ledger: Ledger, part: str) -> list[str]:
    return [name for name in ledger.store.list("cells/") if part in name]


def test_compact_waits_for_every_episode(ledger: Ledger):
    commit_all(ledger, EPISODES[:-1])
    assert not ledger.compact(CELL, EPISODES) and not names(ledger, "/cell-")
    commit_all(ledger, EPISODES[-1:])
    before = ledger.read(CELL)
    assert ledger.compact(CELL, EPISODES) and ledger.compact(CELL, EPISODES)
    assert len(names(ledger, "/cell-")) == 1
    assert len(names(ledger, "/episodes/")) == len(EPISODES), "compacting never deletes"
    after = ledger.read(CELL)
    assert after.table == before.table and ledger.missing(CELL, EPISODES) == []
    assert (before.loose, after.loose) == (len(EPISODES), 0)


def test_pruned_cells_read_the_same(ledger: Ledger):
    commit_all(ledger, EPISODES)
    assert ledger.prune(CELL) == 0, "loose rows are all there is"
    ledger.compact(CELL, EPISODES)
    before = ledger.read(CELL)
    assert ledger.prune(CELL) == len(EPISODES) and not names(ledger, "/episodes/")
    assert ledger.read(CELL) == before and ledger.missing(CELL, EPISODES) == []


def test_two_drivers_compact_at_once(ledger: Ledger):
    commit_all(ledger, EPISODES)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: ledger.compact(CELL, EPISODES), range(4)))
    assert len(names(ledger, "/cell-")) == 1
    assert ledger.read(CELL).table.num_rows == len(EPISODES)


def test_a_cell_that_grows_is_compacted_again(ledger: Ledger):
    commit_all(ledger, EPISODES[:5])
    assert ledger.compact(CELL, EPISODES[:5])
    ledger.prune(CELL)
    commit_all(ledger, EPISODES[5:])
    assert ledger.compact(CELL, EPISODES) and len(names(ledger, "/cell-")) == 2
    rows = ledger.read(CELL)
    assert rows.table.num_rows == len(EPISODES) and not rows.problems


def test_a_finished_cell_is_not_listed_again(local: Ledger, monkeypatch: pytest.MonkeyPatch):
    commit_all(local, EPISODES)
    local.compact(CELL, EPISODES)
    monkeypatch.setattr(Ledger, "_loose_keys", lambda *_: pytest.fail("listed loose rows"))
    assert local.missing(CELL, EPISODES) == []


# Scores


def test_summary_counts_per_task(ledger: Ledger):
    commit_all(ledger, EPISODES)
    summary = ledger.summary(CELL, EPISODES)
    assert [(t.task, t.successes, t.trials, t.missing) for t in summary.tasks] == [
        ("task0", 2, 4, 0),
        ("task1", 2, 4, 0),
        ("task2", 2, 4, 0),
    ]
    assert (summary.successes, summary.trials, summary.missing) == (6, 12, 0)


def test_missing_trials_are_never_averaged_silently(local: Ledger):
    commit_all(local, EPISODES[:9])
    with pytest.raises(IncompleteCellError, match=f"{CELL.id} lacks 3 of 12 episodes"):
        local.summary(CELL, EPISODES)
    summary = local.summary(CELL, EPISODES, allow_missing=True)
    assert (summary.trials, summary.missing) == (9, 3)
    assert local.summary(CELL, EPISODES[:8]).trials == 8, "only the episodes asked about count"


# What cannot be trusted


def changed_schema() -> bytes:
    table = pa.Table.from_pylist([row_of(EPISODES[1]).flat()], ROWS)
    return encode(table.set_column(0, ROWS.field(0), pa.array([99])))


def other_columns() -> bytes:
    return encode(pa.Table.from_pylist([row_of(EPISODES[1]).flat()], ROWS).drop(["seed"]))


def altered_field() -> bytes:
    flat = {**row_of(EPISODES[1]).flat(), "instruction": "push 9"}
    return encode(pa.Table.from_pylist([flat], ROWS))


def altered_bytes() -> bytes:
    return encode_row(row_of(EPISODES[1])).replace(b"push 0", b"push 9")


def poison() -> bytes:
    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    return pickle.dumps(Bomb())


BROKEN = {
    "cut short": (lambda: encode_row(row_of(EPISODES[1]))[:-40], "not readable as Parquet"),
    "empty": (lambda: b"", "not readable as Parquet"),
    "a pickle": (poison, "not readable as Parquet"),
    "schema number": (changed_schema, r"written with schema \{99\}"),
    "other columns": (other_columns, "other columns than schema 2: seed"),
    "another's row": (lambda: encode_row(row_of(EPISODES[2])), "row of another episode"),
    "altered field": (altered_field, "row of another episode"),
    "altered bytes": (altered_bytes, "not readable as Parquet"),
    "two rows": (
        lambda: encode(pa.Table.from_pylist([row_of(EPISODES[1]).flat()] * 2, ROWS)),
        "2 rows instead of one",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_rows_are_reported_and_block_the_score(local: Ledger, kind: str):
    make, reason = BROKEN[kind]
    commit_all(local, EPISODES[:1] + EPISODES[2:])
    put_raw(local, EPISODES[1].key, make())
    rows = local.read(CELL)
    assert rows.table.num_rows == len(EPISODES) - 1
    (problem,) = rows.problems
    assert EPISODES[1].key in problem.key
    for action in (local.summary, local.compact):
        with pytest.raises(BrokenRowsError, match=reason):
            action(CELL, EPISODES)


def test_a_damaged_compacted_file_is_reported(local: Ledger):
    commit_all(local, EPISODES)
    local.compact(CELL, EPISODES)
    (name,) = names(local, "/cell-")
    data = bytearray(local.store.get(name))
    data[len(data) // 2] ^= 1
    local.store.put(name, bytes(data))
    assert local.missing(CELL, EPISODES) == [], "the loose rows still stand"
    for action in (local.prune, lambda cell: local.summary(cell, EPISODES)):
        with pytest.raises(BrokenRowsError, match="bytes have changed"):
            action(CELL)


def test_two_different_rows_for_one_key_are_reported(local: Ledger):
    commit_all(local, EPISODES)
    local.compact(CELL, EPISODES)
    table = local.read(CELL).table
    forged = table.set_column(
        table.schema.get_field_index("writer"),
        ROWS.field("writer"),
        pa.array(["someone else"] * table.num_rows),
    )
    data = encode(forged)
    from vla_platform.ledger import _digest

    local.store.put(f"cells/{CELL.id}/cell-{_digest(data)}.parquet", data)
    assert len(local.read(CELL).problems) == len(EPISODES)
    with pytest.raises(BrokenRowsError, match="two different rows"):
        local.summary(CELL, EPISODES)


def test_a_cell_file_that_is_no_description_is_named(local: Ledger):
    local.store.put("cells/0123456789abcdef/cell.json", b"{}")
    with pytest.raises(BrokenRowsError, match="0123456789abcdef"):
        list(local.cells())


def test_one_writer_that_contradicts_itself_is_a_problem(local: Ledger):
    won = row_of(EPISODES[0], success=True)
    for rows in ([won], [dataclasses.replace(won, success=False)]):
        data = encode(pa.Table.from_pylist([row.flat() for row in rows], ROWS))
        local.store.put(f"cells/{CELL.id}/cell-{_digest(data)}.parquet", data)
    with pytest.raises(BrokenRowsError, match="two different rows"):
        local.read(CELL).require_sound()


@pytest.mark.parametrize("text", ["[]", "3", "null", '{"schema": 2, "policy": 1}', "[" * 5000])
def test_a_cell_json_of_something_else(local: Ledger, text: str):
    local.store.put(f"cells/{CELL.id}/cell.json", text.encode())
    with pytest.raises(BrokenRowsError, match="does not describe a cell"):
        list(local.cells())


# Beside the rows


def test_fingerprints_are_kept_once(ledger: Ledger):
    fingerprint = {"mujoco": "3.3", "renderer": "osmesa"}
    digest = ledger.keep_fingerprint(fingerprint)
    assert digest == ledger.keep_fingerprint(dict(reversed(fingerprint.items())))
    assert ledger.fingerprint(digest) == fingerprint
    with pytest.raises(KeyError):
        ledger.fingerprint("0" * 64)


def test_errors_are_kept_apart_and_without_secrets(ledger: Ledger, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOME_API_TOKEN", "planted-token")
    ledger.record_error(EPISODES[0], "hang", "no frame for 60 s", "n1")
    ledger.record_error(EPISODES[0], "crash", "died while sending planted-token")
    first, second = ledger.errors(CELL)
    assert (first["cause"], second["message"]) == ("hang", "died while sending ***")
    assert ledger.missing(CELL, EPISODES) == EPISODES and ledger.read(CELL).table.num_rows == 0


def test_a_long_error_keeps_how_it_begins_and_how_it_ends(ledger: Ledger):
    ledger.record_error(EPISODES[0], "crash", "simulator x\n" + "frame\n" * 9000 + "ValueError: y")
    [kept] = ledger.errors(CELL)
    text = str(kept["message"])
    assert len(text) == 4000
    assert text.startswith("simulator x\n") and text.endswith("frame\nValueError: y")


def test_nothing_stored_holds_a_secret(ledger: Ledger, monkeypatch: pytest.MonkeyPatch):
    commit_all(ledger, EPISODES)
    ledger.compact(CELL, EPISODES)
    for key in ledger.store.list():
        data = ledger.store.get(key)
        assert b"planted" not in data and b"AWS" not in data
        assert not key.endswith(".json") or json.loads(data)
