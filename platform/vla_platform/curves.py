"""A training's figures: Parquet rows in the store, TensorBoard's events, and Ray's metrics."""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from ray.util.metrics import Gauge

from vla_platform.store import Store

log = logging.getLogger(__name__)

FLUSH_S = 30.0
"""Rows reach the store this often, and before every checkpoint."""
SETTLE_S = 60.0
"""How long a checkpoint waits for its rows: they are worth less than it is."""
READERS = 16
"""Threads that read a run's files, which are thousands and small."""
GAUGES: dict[str, tuple[str, str]] = {
    "step": ("vla_train_step", "Optimiser steps done"),
    "loss": ("vla_train_loss", "Loss of the last step's global batch"),
    "gripper_accuracy": ("vla_train_gripper_accuracy_ratio", "Gripper states predicted rightly"),
    "action_error": ("vla_train_action_error", "Mean absolute pose error, normalised units"),
    "grad_norm": ("vla_train_grad_norm", "2-norm of the gradient before clipping"),
    "lr": ("vla_train_learning_rate", "Learning rate"),
    "samples_per_s": ("vla_train_samples_per_second", "Samples per second, all workers"),
    "tokens_per_s": ("vla_train_tokens_per_second", "Tokens per second, all workers"),
    "step_s": ("vla_train_step_seconds", "Duration of the last step"),
    "data_wait_s": ("vla_train_data_wait_seconds", "Time the last step waited for its batch"),
    "checkpoint_s": ("vla_train_checkpoint_seconds", "Time the last step stood still for a copy"),
    "mfu": ("vla_train_mfu_ratio", "Model FLOP/s over the GPUs' peak"),
}
"""Figure -> name and description in Ray's metrics."""
Row = Mapping[str, float]


class Curves:
    """Where worker 0 leaves the figures of run `run`; `folder` is for TensorBoard's file.

    Safe to use from the loop's thread and its publisher's.
    """

    def __init__(self, store: Store, run: str, folder: Path) -> None:
        self.store, self.run, self.folder = store, run, folder
        self.rows: list[Row] = []
        self._shown: list[Row] = []
        self._flushed = time.monotonic()
        self._gauges: dict[str, Gauge] = {}
        self._events: EventFile | None = None
        self._pool = ThreadPoolExecutor(1, "curves")
        self._pending: Future[None] | None = None
        self._lock = threading.Lock()

    def add(self, rows: Sequence[Row]) -> None:
        now = time.time()
        with self._lock:
            self.rows += [{**row, "time": now} for row in rows]
            self._shown.append(rows[-1])
        self._set_gauges(rows[-1])
        if time.monotonic() - self._flushed > FLUSH_S and not self._sending():
            self.flush()

    def flush(self) -> None:
        """Send the rows off in a thread, after those on their way."""
        with self._lock:
            rows, shown, self.rows, self._shown = self.rows, self._shown, [], []
            self._flushed = time.monotonic()
            if rows:
                self._pending = self._pool.submit(self._send, rows, shown)

    def settle(self) -> None:
        """All rows so far reach the store before this returns, if it takes them in `SETTLE_S`."""
        self.flush()
        if self._pending is not None:
            wait([self._pending], SETTLE_S)

    def close(self) -> None:
        """The last rows reach the store before this returns."""
        self.flush()
        self._pool.shutdown(wait=True)

    def _sending(self) -> bool:
        return self._pending is not None and not self._pending.done()

    def _send(self, rows: list[Row], shown: list[Row]) -> None:
        first, last = int(rows[0]["step"]), int(rows[-1]["step"])
        sink = io.BytesIO()
        try:
            pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), sink)
            self.store.put(_key(self.run, first, last), sink.getvalue())
            self._send_events(shown)
        except Exception as error:  # figures never stop a training
            log.warning("figures of steps %d to %d are not all stored: %s", first, last, error)

    def _send_events(self, shown: list[Row]) -> None:
        self._events = self._events or EventFile(self.folder)
        self._events.add(shown)
        self.store.upload(self._events.path, f"tensorboard/{self.run}/{self._events.path.name}")

    def _set_gauges(self, row: Row) -> None:
        errors = [value for name, value in row.items() if name.startswith("error_")]
        figures = {**row, **({"action_error": sum(errors) / len(errors)} if errors else {})}
        for figure, (name, description) in GAUGES.items():
            if figure in figures:
                if figure not in self._gauges:
                    self._gauges[figure] = Gauge(name, description, tag_keys=("run",))
                self._gauges[figure].set(figures[figure], tags={"run": self.run})


class EventFile:
    """A file that TensorBoard reads."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter  # slow to import, and only needed here

        folder.mkdir(parents=True, exist_ok=True)
        self._writer = SummaryWriter(str(folder))
        self.path = next(folder.glob("events.out.tfevents.*"))

    def add(self, rows: Sequence[Row]) -> None:
        for row in rows:
            for name, value in row.items():
                if name != "step":
                    self._writer.add_scalar(f"train/{name}", value, int(row["step"]))
        self._writer.flush()


def _key(run: str, first: int, last: int) -> str:
    """Of other steps, another name: a resumed attempt replaces no rows but its own steps'."""
    return f"metrics/{run}/step-{first:08d}-{last:08d}.parquet"


def read(store: Store, run: str) -> list[dict[str, float]]:
    """Every step's figures in order; of a step done twice, the later one."""
    found: dict[int, dict[str, float]] = {}
    with ThreadPoolExecutor(READERS) as pool:
        files = pool.map(store.get, store.list(f"metrics/{run}/step-"))
    for data in files:
        for row in pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False).to_pylist():
            step = int(row["step"])
            if step not in found or row["time"] > found[step]["time"]:
                found[step] = row
    return [found[step] for step in sorted(found)]
