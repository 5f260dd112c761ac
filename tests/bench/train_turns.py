"""Turns for trainings that are compared on one machine: each computes while the others wait."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist


@dataclass
class Turns:
    """Whose turn it is: a contest's folder says so. Worker 0 of each contestant keeps times."""

    folder: Path
    name: str
    order: tuple[str, ...]
    rounds: int

    def __post_init__(self) -> None:
        self.samples, self.seconds, self.round, self.began, self.first = 0, 0.0, 0, 0.0, 0.0

    def begin(self) -> None:
        """The first step is done; wait until everybody's is, and for the first turn."""
        self.first = time.time()
        (self.folder / f"began-{self.name}").touch()
        while len(list(self.folder.glob("began-*"))) < len(self.order):
            time.sleep(0.02)
        self._await()

    def end(self, samples: int) -> None:
        """A turn of so many samples is over; after the last one the result is written."""
        if self.round:
            self.samples += samples
            self.seconds += time.monotonic() - self.began
        self.round += 1
        (self.folder / f"turn-{self._number() - len(self.order) + 1}").touch()
        if self.round <= self.rounds:
            return self._await()
        told = {"rate": self.samples / self.seconds, "first": self.first}
        (self.folder / f"{self.name}.json").write_text(json.dumps(told))

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
    """A sink around another that ends a turn whenever the workers bring their figures together."""

    def __init__(self, sink: Any, turns: Turns, batch: int) -> None:
        self.sink, self.turns, self.batch = sink, turns, batch
        self.asked = self.steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sink, name)

    def candidates(self) -> list[int]:
        return []

    def report(self, rows: list[dict[str, float]]) -> None:
        self.steps += len(rows)
        self.sink.report(rows)

    def notice(self) -> bool:
        """Every worker comes here; those but the first then wait for it in their reduction."""
        self.asked += 1
        if dist.get_rank() == 0:
            self.turns.begin() if self.asked == 1 else self.turns.end(self.steps * self.batch)
        self.steps = 0
        if self.asked == self.turns.rounds + 2:
            raise Over
        return False


class Dropped:
    """Where our loop alone sends what it writes."""

    def publish(self, part: object) -> None: ...
    def commit(self, part: object) -> None: ...
    def report(self, rows: object) -> None: ...
