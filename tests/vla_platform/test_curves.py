"""A training's figures in the store: before their checkpoint, never replaced, never in the way."""

import io
import threading
import time
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from vla_platform import artifacts, curves
from vla_platform.curves import Curves
from vla_platform.store import open_store
from vla_platform.store_sink import StoreSink

RUN = "run"


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "store"))


def rows(*steps):
    return [{"step": float(step), "loss": 1.0} for step in steps]


def stored(store):
    return [row["step"] for row in curves.read(store, RUN)]


class SlowFigures:
    """A store that takes its time over figures, and notes in which order keys came."""

    def __init__(self, inner):
        self.inner, self.keys = inner, []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def put(self, key, data):
        if key.startswith("metrics/"):
            time.sleep(0.3)
        self.inner.put(key, data)
        self.keys.append(key)


def test_a_checkpoints_figures_are_stored_before_its_marker(store, tmp_path):
    slow = SlowFigures(store)
    sink = StoreSink(slow, RUN, tmp_path / "scratch", lambda row: None, lambda: False)
    sink.report(rows(1, 2))
    sink.curves.flush()
    sink.report(rows(3))
    sink.commit(SimpleNamespace(step=3, attempt="a", parts=0, evaluated=True))
    assert [key.split("/")[0] for key in slow.keys] == ["metrics", "metrics", "policies"]
    assert stored(store) == [1, 2, 3]
    sink.curves.close()


def test_a_store_that_takes_no_figures_holds_no_checkpoint_up(store, tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "SETTLE_S", 0.1)
    sink = StoreSink(SlowFigures(store), RUN, tmp_path / "scratch", lambda row: None, lambda: False)
    sink.report(rows(1))
    sink.commit(SimpleNamespace(step=1, attempt="a", parts=0, evaluated=True))
    assert [found.step for found in artifacts.checkpoints(store, RUN)] == [1]
    assert stored(store) == []
    sink.curves.close()
    assert stored(store) == [1]


def test_a_resumed_attempt_replaces_no_other_steps(store, tmp_path):
    for attempt in ((1, 2, 3, 4), (3, 4)):
        made = Curves(store, RUN, tmp_path / "events")
        made.add(rows(*attempt))
        made.close()
    assert stored(store) == [1, 2, 3, 4]


class Together:
    """A store that answers when four keys are asked for at once."""

    def __init__(self, inner):
        self.inner, self.barrier = inner, threading.Barrier(4, timeout=60)

    def list(self, prefix):
        return self.inner.list(prefix)

    def get(self, key):
        self.barrier.wait()
        return self.inner.get(key)


def test_files_are_read_side_by_side(store, tmp_path):
    made = Curves(store, RUN, tmp_path / "events")
    for step in range(1, 5):
        made.add(rows(step))
        made.flush()
    made.close()
    assert stored(Together(store)) == [1, 2, 3, 4]


def test_files_named_by_their_last_step_alone_are_read(store, tmp_path):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{**row, "time": 1.0} for row in rows(1, 2)]), sink)
    store.put(f"metrics/{RUN}/step-00000002.parquet", sink.getvalue())
    made = Curves(store, RUN, tmp_path / "events")
    made.add(rows(3))
    made.close()
    assert stored(store) == [1, 2, 3]


def test_a_disk_without_room_for_tensorboard_ends_nothing(store, tmp_path, caplog):
    (tmp_path / "events").write_text("a file where the folder should be")
    made = Curves(store, RUN, tmp_path / "events")
    made.add(rows(1))
    made.close()
    assert stored(store) == [1]
    assert "figures of steps 1 to 1 are not all stored" in caplog.text
