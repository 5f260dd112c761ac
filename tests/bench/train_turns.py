"""Turns for trainings that are compared on one machine: each computes while the others wait."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

STEPS = 3
"""Of a turn."""


@dataclass
class Turns:
    """Whose turn it is: a contest's folder says so. Worker 0 of each contestant keeps times."""

    folder: Path
    name: str
    order: tuple[str, ...]
    rounds: int

    def __post_init__(self) -> None:
        self.rates: list[float] = []
        self.round, self.began, self.first = 0, 0.0, 0.0

    def begin(self) -> None:
        """The first steps are done; wait until everybody's are, and for the first turn."""
        (self.folder / f"began-{self.name}").touch()
        self._await_all("began-*")
        self._await()

    def end(self, samples: int) -> None:
        """A turn of so many samples is over; after the last one the result is written."""
        if self.round:
            self.rates.append(samples / (time.monotonic() - self.began))
        self._settle()
        self.round += 1
        (self.folder / f"turn-{self._number() - len(self.order) + 1}").touch()
        if self.round <= self.rounds:
            return self._await()
        told = {"rates": self.rates, "first": self.first}
        (self.folder / f"{self.name}.json").write_text(json.dumps(told))
        # Going on to the next size now would slow those who still have their last turn.
        self._await_all("*.json")

    def _settle(self) -> None:
        """Batches prepared ahead and checkpoints sent: they would slow the next contestant."""
        spent = -1.0
        while time.process_time() - spent > 0.02:
            spent = time.process_time()
            time.sleep(0.1)

    def _await_all(self, files: str) -> None:
        """Until every contestant has written one."""
        while len(list(self.folder.glob(files))) < len(self.order):
            time.sleep(0.02)

    def _number(self) -> int:
        return self.round * len(self.order) + self.order.index(self.name)

    def _await(self) -> None:
        number = self._number()
        while number and not (self.folder / f"turn-{number}").exists():
            time.sleep(0.005)
        self.began = time.monotonic()


class Over(Exception):
    """Every turn has been taken."""


class TakingTurns:
    """A sink around another that ends a turn after so many steps, which are reported one by one."""

    def __init__(self, sink: Any, turns: Turns, batch: int) -> None:
        self.sink, self.turns, self.batch = sink, turns, batch
        self.steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sink, name)

    def candidates(self) -> list[int]:
        return []

    def notice(self) -> bool:
        """Every worker comes here; those but the first then wait for it in their reduction."""
        self.steps += 1
        if self.steps == 1:
            self.turns.first = time.time()
        if self.steps % STEPS == 0 and dist.get_rank() == 0:
            self.turns.begin() if self.steps == STEPS else self.turns.end(STEPS * self.batch)
        if self.steps == STEPS * (self.turns.rounds + 2):
            raise Over
        return False


class FirstStep:
    """A sink around another. at: when the first step was done, in seconds since the epoch."""

    def __init__(self, sink: Any) -> None:
        self.sink, self.at = sink, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sink, name)

    def notice(self) -> bool:
        self.at = self.at or time.time()
        return bool(self.sink.notice())


class Dropped:
    """Where our loop alone sends what it writes."""

    def publish(self, part: object) -> None: ...
    def commit(self, part: object) -> None: ...
    def report(self, rows: object) -> None: ...
