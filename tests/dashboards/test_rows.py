"""Reading the store: what cannot be trusted is named and enters no number."""

import json
import threading
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from vla_platform.evaluation import REPEAT
from vla_platform.rows import ROWS as LEDGER_ROWS
from vla_platform.rows import SCHEMA as LEDGER_SCHEMA
from vla_platform.rows import encode_row
from vla_platform.store import open_store

from dashboards.archive import Archive, ArchiveError, open_archive
from dashboards.cells import BROKEN, COMPLETE, UNFINISHED
from dashboards.rows import COLUMNS, SCHEMAS, read_cells
from dashboards.runs import Known, read_study, thin
from tests.dashboards.builder import made, share
from vlm4vla.run import Run

TASKS = ("reach", "push", "pick-and-place")


@pytest.mark.parametrize(
    "options", ["", "?endpoint=h:2&scheme=http&region=r", "?endpoint=http://h:3/"]
)
@pytest.mark.parametrize(
    "told",
    [
        {},
        {"AWS_ENDPOINT_URL": "http://a:1", "AWS_DEFAULT_REGION": "default"},
        {"AWS_ENDPOINT_URL_S3": "https://b:1/", "AWS_ENDPOINT_URL": "http://a:1"},
        {"AWS_REGION": "first", "AWS_DEFAULT_REGION": "default"},
    ],
)
def test_a_bucket_is_where_the_platform_finds_it(monkeypatch, told, options):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    store, archive = (open_(f"s3://bucket/x{options}") for open_ in (open_store, open_archive))
    [bucket] = archive.files.base_fs.__reduce__()[1]
    scheme, _, host = store.endpoint.rpartition("://")
    assert (bucket["region"], bucket["endpoint_override"]) == (store.region, host)
    assert bucket["scheme"] == (scheme or "https")


def one_cell(builder):
    (cell,) = read_cells(open_archive(builder.url))
    return cell


def test_columns_are_the_ledgers():
    for name, kind in COLUMNS.items():
        assert LEDGER_ROWS.field(name).type == kind
    assert SCHEMAS[-1] == LEDGER_SCHEMA, "look at the columns before reading a new version"


def test_a_compacted_cell_is_complete(builder):
    cell = builder.cell("r", 10, 2, "tabletop")
    builder.play(cell, {"reach": share(0.7, 10), "push": share(0.2, 10)})
    found = one_cell(builder)
    assert (found.status, found.successes, found.trials, found.id) == (COMPLETE, 9, 20, cell.id)
    push, reach = found.tasks
    assert (push.name, push.successes, reach.successes, reach.steps) == ("push", 2, 7, 400)
    assert found.outcomes()["reach"][9] == 1.0


def test_repeats_of_a_state_count_as_one(builder):
    cell = builder.cell("r", 10, 2, "tabletop")
    for repeat, won in enumerate((True, False, False)):
        episode = cell.episode("reach", 3, 3 + repeat * REPEAT, "")
        builder.ledger.commit(made(cell, "reach", 3, won, episode=episode))
    builder.ledger.commit(made(cell, "reach", 4, True))
    found = one_cell(builder)
    assert (found.successes, found.trials, found.states) == (2, 4, 2)
    assert found.outcomes() == {"reach": {3: pytest.approx(1 / 3), 4: 1.0}}


def test_loose_rows_are_unfinished_until_compacted(builder):
    cell = builder.cell("r", 10, 2, "tabletop")
    rows = builder.play(cell, {"reach": share(0.5, 6)}, compact=False)
    found = one_cell(builder)
    assert (found.status, found.trials, found.loose) == (UNFINISHED, 6, 6)
    assert builder.ledger.compact(cell, [row.episode for row in rows])
    again = one_cell(builder)
    assert (again.status, again.trials, again.loose) == (COMPLETE, 6, 0)
    builder.ledger.commit(made(cell, "reach", 6, True))
    more = one_cell(builder)
    assert (more.status, more.trials, more.loose) == (UNFINISHED, 7, 1)


def test_errors_are_no_results(builder):
    cell = builder.cell("r", 10, 2, "tabletop")
    rows = builder.play(cell, {"reach": share(0.5, 4)})
    builder.ledger.record_error(rows[0].episode, "timeout", "the simulator hung")
    assert one_cell(builder).status == COMPLETE
    trace = f"Traceback\n{'a frame of it ' * 99}\nsegmentation fault"
    builder.ledger.record_error(cell.episode("reach", 9, 9, ""), "died", trace)
    found = one_cell(builder)
    assert {f.message for f in found.failures} == {"the simulator hung", "segmentation fault"}
    assert (found.status, found.trials, found.unfinished_episodes) == (UNFINISHED, 4, 1)
    assert {f.cause: f.finished for f in found.failures} == {"timeout": True, "died": False}


def other_schema(row):
    table = pa.Table.from_pylist([{**row.flat(), "schema": 9}], LEDGER_ROWS)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def newer_columns(row):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"schema": [7], "key": [row.episode.key], "reward": [0.5]}), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda row, other: b"not parquet", "not readable as Parquet"),
        (lambda row, other: encode_row(row)[:-20], "not readable as Parquet"),
        (lambda row, other: encode_row(other), "does not hold the one row"),
        (lambda row, other: other_schema(row), "written with schema 9, this reads 1, 2"),
        (lambda row, other: newer_columns(row), "written with schema 7"),
    ],
)
def test_broken_and_foreign_rows_take_the_score_away(builder, damage, reason):
    cell = builder.cell("r", 10, 2, "tabletop")
    rows = builder.play(cell, {"reach": share(0.5, 4)})
    fresh = [made(cell, "reach", n, True) for n in (8, 9)]
    builder.store.put(f"cells/{cell.id}/episodes/{fresh[0].episode.key}.parquet", damage(*fresh))
    found = one_cell(builder)
    assert found.status == BROKEN and found.trials == len(rows)
    (problem,) = found.problems
    assert reason in problem.reason and fresh[0].episode.key in problem.key


def test_a_compacted_file_that_changed_is_broken(builder):
    cell = builder.cell("r", 10, 2, "tabletop")
    builder.play(cell, {"reach": share(0.5, 4)})
    (key,) = builder.store.list(f"cells/{cell.id}/cell-")
    builder.store.put(key, builder.store.get(key)[:-1] + b"!")
    assert "bytes have changed" in one_cell(builder).problems[0].reason


def test_rows_of_another_cell_are_strangers(builder):
    cell, other = (builder.cell("r", 10, h, "tabletop") for h in (2, 4))
    builder.play(other, {"reach": share(0.5, 4)})
    (key,) = builder.store.list(f"cells/{other.id}/cell-")
    builder.ledger.describe(cell)
    builder.store.put(f"cells/{cell.id}/{key.rpartition('/')[2]}", builder.store.get(key))
    found = {c.id: c for c in read_cells(open_archive(builder.url))}
    assert found[other.id].status == COMPLETE
    assert "whose horizon is not the cell's" in found[cell.id].problems[0].reason


def test_two_rows_of_one_key_and_an_unreadable_description(builder):
    cell = builder.cell("r", 10, 2, "tabletop")
    builder.play(cell, {"reach": share(0.5, 4)})
    builder.play(cell, {"reach": share(0.5, 4)}, writer="another")
    assert "two different rows" in one_cell(builder).problems[0].reason
    builder.store.put(f"cells/{cell.id}/cell.json", b"{}")
    assert one_cell(builder).fields == {}


def test_a_study_ties_runs_to_their_cells(builder):
    run = builder.train(Run("tiny-kosmos-2", "tabletop"))
    builder.play(builder.cell(run, 1000, 2, "tabletop"), {t: share(0.5, 10) for t in TASKS})
    builder.play(builder.cell("nobody", 1, 2, "tabletop"), {"reach": share(1, 2)})
    builder.store.put(f"videos/x/{'a' * 64}.mp4", b"film")
    study = read_study(open_archive(builder.url))
    (found,) = study.runs
    assert (found.id, found.name, found.benchmark) == (run, "tiny-kosmos-2", "tabletop")
    assert found.step_of(found.cells[0]) == found.trained == found.steps == 1000
    assert found.status == "complete" and found.seconds == 19 and len(found.metrics) == 20
    assert len(study.strangers) == 1 and list(study.videos) == ["a" * 64]
    assert json.loads(builder.store.get(f"fingerprints/{builder.fingerprint}.json")) == dict(
        study.fingerprints[builder.fingerprint]
    )


def test_a_run_without_a_readable_configuration_is_broken(builder):
    run = builder.train(Run("tiny-kosmos-2", "tabletop"), steps=(1000,))
    builder.store.put(f"policies/{run}/step-00001000/policy.json", b"[]")
    builder.store.put(f"metrics/{run}/step-00000200.parquet", b"?")
    (found,) = read_study(open_archive(builder.url)).runs
    assert found.status == BROKEN and len(found.problems) == 2 and len(found.metrics) == 20


def asked(monkeypatch, keys, before=lambda: None):
    """Adds the keys of metrics to `keys` as they are read."""
    get = Archive.get

    def noted(archive, key):
        if key.startswith("metrics/"):
            keys.append(key)
            before()
        return get(archive, key)

    monkeypatch.setattr(Archive, "get", noted)


def test_metrics_are_read_once(builder, monkeypatch):
    run = builder.train(Run("tiny-kosmos-2", "tabletop"), metrics=40, files=8)
    builder.store.put(f"metrics/{run}/step-00000099.parquet", b"?")
    archive, known, read = open_archive(builder.url), Known(), list[str]()
    asked(monkeypatch, read)

    def look():
        read.clear()
        (found,) = read_study(archive, known).runs
        assert [row["step"] for row in found.metrics] == list(range(1, len(found.metrics) + 1))
        assert len(found.problems) == 1
        return [len(read), len(found.metrics), found.metrics[-1]["time"]]

    assert look() == [9, 40, 1e9 + 40]
    assert look() == [0, 40, 1e9 + 40]
    builder.figures(run, 41, 45)
    assert look() == [1, 45, 1e9 + 45]
    builder.figures(run, 41, 45, began=2e9)  # the same steps, after a crash
    assert look()[1:] == [45, 2e9 + 45]


def test_metrics_of_all_runs_are_read_side_by_side(builder, monkeypatch):
    for seed in range(2):
        builder.train(Run("tiny-kosmos-2", "tabletop", seed=seed), metrics=4, files=2)
    read, together = list[str](), threading.Barrier(4, timeout=60)
    asked(monkeypatch, read, together.wait)
    study = read_study(replace(open_archive(builder.url), remote=True))
    assert len(read) == 4 and [len(run.metrics) for run in study.runs] == [4, 4]


def test_curves_are_thinned_to_their_end():
    assert thin(range(10)) == list(range(10)) and thin([]) == []
    assert len(thin(range(100_001))) <= 400 and thin(range(100_001))[-1] == 100_000


def test_what_is_no_store(tmp_path):
    with pytest.raises(ArchiveError, match="there is no store at"):
        open_archive(str(tmp_path / "nowhere"))
    with pytest.raises(ArchiveError, match="scheme 'ftp'"):
        open_archive("ftp://host/path")
    with pytest.raises(ArchiveError, match="carries credentials") as failure:
        open_archive("s3://key:secret@bucket/x")
    assert "secret" not in str(failure.value)
