"""Playing what scores lack, and filming it: one pool, started with the first episode to play."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from vla_platform import evaluation
from vla_platform.assignments import Assignment
from vla_platform.cluster import Cluster
from vla_platform.evaluation import Result, Wanted
from vla_platform.ledger import Ledger
from vla_platform.progress import Meter
from vla_platform.store import Store

if TYPE_CHECKING:
    from vla_platform.inference import LoadPolicy
    from vla_platform.rollouts import Pool


@dataclass
class Played:
    """Scores in order, and what they cost this time. seconds: of playing and filming."""

    results: list[Result] = field(default_factory=list)
    played: int = 0
    errors: int = 0
    seconds: float = 0.0
    videos: list[str] = field(default_factory=list)


class Player:
    """Use as a context manager. say: where sentences go."""

    def __init__(self, store: Store, cluster: Cluster, say: Callable[[str], None]) -> None:
        self.store, self.cluster, self.say = store, cluster, say
        self.ledger = Ledger(store)
        self.pool: Pool | None = None
        self.connected = False

    def loader(self) -> LoadPolicy | None:
        """How replicas load a policy; None where all policies are remote."""
        raise NotImplementedError

    def play(self, wanted: Sequence[Wanted], report: Played, name: str = "") -> None:
        """Play what is missing. name: of what is played, for the lines that say so."""
        began = time.monotonic()
        with Meter(f"{name} rollouts".strip()) as meter:
            tally = evaluation.play(self.ledger, wanted, self._pool, meter.tally)
        report.played += tally.done
        self._count(report, began, tally.errors, name)

    def film(self, wanted: Sequence[Wanted], per_task: int, report: Played) -> None:
        """Make the videos that the store lacks: see `evaluation.film`."""
        began = time.monotonic()
        filmed = evaluation.film(self.ledger, wanted, per_task, self._pool)
        report.videos = filmed.keys
        self._count(report, began, filmed.errors, "videos")

    def connect(self) -> None:
        """Ray starts only when there is something to train or to play."""
        from vla_platform import session

        if not self.connected:
            self.say(f"Ray dashboard: {session.connect() or 'none'}")
            self.connected = True

    def _count(
        self, report: Played, began: float, errors: Sequence[tuple[Assignment, str]], name: str
    ) -> None:
        report.seconds += time.monotonic() - began
        report.errors += len(errors)
        for assignment, reason in errors[:3]:
            episode = assignment.episode
            place = f"{episode.task} #{episode.initial_state}"
            self.say(f"{name}: error in {place}: {reason}".removeprefix(": "))

    def _pool(self) -> Pool:
        from vla_platform.rollouts import Pool

        self.connect()
        if self.pool is None:
            self.pool = Pool(self.store, self.loader(), self.cluster)
        return self.pool

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        if self.pool is not None:
            self.pool.__exit__(kind)
