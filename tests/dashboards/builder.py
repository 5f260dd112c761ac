"""Stores as the platform writes them, made quickly: trainings, cells, errors, videos."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq
from vla_platform.evaluation import REPEAT
from vla_platform.ledger import Ledger
from vla_platform.rows import ROWS, Cell, Row, encode
from vla_platform.store import open_store

from envs.benchmarks import benchmark
from vlm4vla.run import Run

FINGERPRINT = {"python": "3.11", "tabletop": "1"}


@dataclass
class Builder:
    """A store and what puts things into it."""

    url: str

    def __post_init__(self):
        self.store = open_store(self.url)
        self.ledger = Ledger(self.store)
        self.fingerprint = self.ledger.keep_fingerprint(FINGERPRINT)

    def train(self, run: Run, steps=(), metrics=20, files=1):
        """A run with checkpoints at the steps (all of its recipe's for none); its id.

        metrics: steps that have figures, over so many files (a training sends one in 30 s).
        """
        row = benchmark(run.benchmark)
        run = run.resolved(row.recipe)
        name = run.id(row)
        for step in steps or (0, *row.recipe.checkpoints):
            folder = f"policies/{name}/step-{step:08d}"
            self.store.put(f"{folder}/policy.json", json.dumps({"run": asdict(run)}).encode())
            marker = {"digest": digest(name, step), "step": step}
            self.store.put(f"{folder}/complete.json", json.dumps(marker).encode())
        each = -(-metrics // files)
        for first in range(1, metrics + 1, each):
            self.figures(name, first, min(first + each - 1, metrics))
        return name

    def figures(self, run: str, first: int, last: int, began: float = 1e9):
        """A file of training metrics, one step a second."""
        rows = [
            {"step": s, "time": began + s, "loss": 1 / (s + 1), "samples_per_s": 90.0 + s % 7}
            for s in range(first, last + 1)
        ]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        key = f"metrics/{run}/step-{first:08d}-{last:08d}.parquet"
        self.store.put(key, sink.getvalue().to_pybytes())

    def compare(self, run: str, reference: str, step: int, value: float, layers: int = 2):
        """Similarities of a checkpoint, the language model's a tenth higher."""
        rows = [
            {"part": part, "layer": n, "similarity": value + more, "floor": 0.4}
            for part, more in (("vision", 0.0), ("language", 0.1))
            for n in range(1, layers + 1)
        ]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        key = f"similarity/{run}/{reference}/step-{step:08d}.parquet"
        self.store.put(key, sink.getvalue().to_pybytes())

    def cell(self, run: str, step: int, horizon: int, name: str, **fields) -> Cell:
        fields = {"fingerprint": self.fingerprint, **fields}
        return Cell(policy=digest(run, step), benchmark=name, horizon=horizon, **fields)

    def play(self, cell: Cell, outcomes, compact=True, **fields):
        """Rows of a cell: task -> list of outcomes by initial state (ints: subtasks done).

        A state's outcome may be a tuple, of its repeats.
        """
        self.ledger.describe(cell)
        rows = [
            made(cell, task, state, outcome, repeat, **fields)
            for task, results in outcomes.items()
            for state, every in enumerate(results)
            for repeat, outcome in enumerate(every if isinstance(every, tuple) else (every,))
        ]
        if compact:
            data = encode(pa.Table.from_pylist([row.flat() for row in rows], ROWS))
            name = hashlib.sha256(data).hexdigest()[:32]
            self.store.put(f"cells/{cell.id}/cell-{name}.parquet", data)
        else:
            for row in rows:
                self.ledger.commit(row)
        return rows


def digest(run: str, step: int) -> str:
    return hashlib.sha256(f"{run}/{step}".encode()).hexdigest()


def made(cell: Cell, task: str, state: int, outcome, repeat: int = 0, **fields) -> Row:
    done = int(outcome)
    success = done == 5 if cell.benchmark == "calvin" else bool(outcome)
    plain = Row(
        episode=cell.episode(task, state, state + repeat * REPEAT, ""),
        success=success,
        success_any=success,
        success_last=success,
        steps=40,
        replans=20,
        wall_s=0.5,
        finished_at=1e9 + state,
        writer=f"w{state}",
        completed=done,
    )
    return replace(plain, **fields)


def share(rate: float, states: int) -> list[bool]:
    """Outcomes of which about this share are successes, spread evenly."""
    return [int((i + 1) * rate) > int(i * rate) for i in range(states)]
