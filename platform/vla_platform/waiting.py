"""Episodes that are not handed out: by simulator, the longest first, some not before a time."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count

from vla_platform.assignments import Assignment


@dataclass(frozen=True)
class Demand:
    """Work of one simulator: episodes not finished, and their steps at most."""

    episodes: int
    steps: int


class Waiting:
    """A queue for each simulator."""

    def __init__(self, assignments: Iterable[Assignment]) -> None:
        self._queues: dict[str, deque[Assignment]] = {}
        self._later: list[tuple[float, int, Assignment]] = []
        self._numbers = count()
        for each in sorted(assignments, key=lambda a: a.expected_steps, reverse=True):
            self._queue(each).append(each)

    def __len__(self) -> int:
        return sum(map(len, self._queues.values())) + len(self._later)

    def take(self, kind: str) -> Assignment | None:
        """The next episode of a simulator; None when none may begin now."""
        while self._later and self._later[0][0] <= time.monotonic():
            assignment = heapq.heappop(self._later)[2]
            self._queue(assignment).appendleft(assignment)
        queue = self._queues.get(kind)
        return queue.popleft() if queue else None

    def again(self, assignment: Assignment, pause: float) -> None:
        """Play an episode once more, not before `pause` seconds from now."""
        heapq.heappush(self._later, (time.monotonic() + pause, next(self._numbers), assignment))

    def demand(self) -> dict[str, Demand]:
        """What is queued, by simulator."""
        return {
            kind: Demand(len(queue), sum(each.expected_steps for each in queue))
            for kind, queue in self._queues.items()
        }

    def _queue(self, assignment: Assignment) -> deque[Assignment]:
        return self._queues.setdefault(assignment.benchmark.simulator, deque())


def without(left: Mapping[str, Demand], assignment: Assignment) -> dict[str, Demand]:
    """What is left once an episode is over."""
    kind = assignment.benchmark.simulator
    now = Demand(left[kind].episodes - 1, left[kind].steps - assignment.expected_steps)
    updated = {**left, kind: now}
    return {name: work for name, work in updated.items() if work.episodes}
