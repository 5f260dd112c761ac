"""Scores of any policies on any benchmarks, all in one pool; Ray starts only when one is due."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from envs.api import Benchmark
from envs.benchmarks import wrong_instruction
from vla_platform import evaluation
from vla_platform.artifacts import Checkpoint
from vla_platform.assignments import Assignment
from vla_platform.candidates import Candidate
from vla_platform.cluster import Cluster
from vla_platform.evaluation import OWN, WRONG_WORD, Instruct, Result, Wanted
from vla_platform.ledger import Ledger
from vla_platform.progress import Meter
from vla_platform.store import Store

if TYPE_CHECKING:
    from vla_platform.rollouts import Pool


@dataclass(frozen=True)
class Plan:
    """What every policy is tested on; None stands for what its benchmark says.

    film: videos per task and outcome. repeats: episodes of each initial state.
    """

    horizons: Sequence[int] | None = None
    mode: str = OWN
    tasks: Sequence[str] | None = None
    trials: int | None = None
    first: int = 0
    film: int = 0
    repeats: int = 1


@dataclass
class Report:
    """Scores in order, and what they cost this time."""

    results: list[Result]
    played: int = 0
    errors: int = 0
    seconds: float = 0.0
    videos: list[str] = field(default_factory=list)

    def costs(self) -> str:
        if not self.played and not self.errors:
            return "played nothing: everything was in the store"
        return (
            f"played {self.played} episodes in {self.seconds:.0f} s "
            f"({60 * self.played / max(self.seconds, 1e-9):.0f}/min); {self.errors} errors"
        )


class Scoring:
    """Plays what is missing. load: "module:function" that makes a policy of a folder, imported
    only when something is played; say: where sentences go."""

    def __init__(
        self, store: Store, cluster: Cluster, load: str, say: Callable[[str], None]
    ) -> None:
        self.store, self.cluster, self.load, self.say = store, cluster, load, say
        self.ledger = Ledger(store)
        self.pool: Pool | None = None
        self.local = False
        self.fingerprints: dict[str, str] = {}

    def run(self, candidates: Sequence[Candidate], plan: Plan) -> Report:
        """Every candidate at every horizon; ValueError before anything is played."""
        report = Report([self._result(*each) for each in _spread(candidates, plan)])
        if len({candidate.row.name for candidate in candidates}) > 1:
            for result in report.results:
                result.name += f" on {result.wanted.benchmark.name}"
        self.local = any(isinstance(each.policy, Checkpoint) for each in candidates)
        wanted = [result.wanted for result in report.results]
        began = time.monotonic()
        with Meter("episodes") as meter:
            tally = evaluation.play(self.ledger, wanted, self._pool, meter.tally)
        report.played, report.errors = tally.done, len(tally.errors)
        self._say_errors(tally.errors)
        if plan.film:
            filmed = evaluation.film(self.ledger, wanted, plan.film, self._pool)
            report.videos, report.errors = filmed.keys, report.errors + len(filmed.errors)
            self._say_errors(filmed.errors)
        report.seconds = time.monotonic() - began
        return report

    def _result(
        self,
        candidate: Candidate,
        horizon: int,
        tasks: tuple[str, ...],
        instruct: Instruct | None,
        plan: Plan,
    ) -> Result:
        row = candidate.row
        wanted = Wanted(
            checkpoint=candidate.policy,
            benchmark=row,
            horizon=horizon,
            fingerprint=self._fingerprint(row),
            tasks=tasks,
            trials=plan.trials or row.trials,
            first=plan.first,
            mode=plan.mode,
            profile=candidate.profile,
            instruct=instruct,
            repeats=plan.repeats,
        )
        label = f"horizon {horizon}" + (", wrong word" if plan.mode == WRONG_WORD else "")
        return Result(candidate.name, label, wanted)

    def _fingerprint(self, row: Benchmark) -> str:
        """One start of a simulator tells about all benchmarks that are played in it."""
        if row.name not in self.fingerprints:
            self.fingerprints[row.name] = evaluation.environment(self.ledger, row)
        return self.fingerprints[row.name]

    def _pool(self) -> Pool:
        if self.pool is None:
            from vla_platform import session
            from vla_platform.rollouts import Pool

            self.say(f"Ray dashboard: {session.connect() or 'none'}")
            module, name = self.load.split(":")
            load = getattr(importlib.import_module(module), name) if self.local else None
            self.pool = Pool(self.store, load, self.cluster)
        return self.pool

    def _say_errors(self, errors: Sequence[tuple[Assignment, str]]) -> None:
        for assignment, reason in errors[:3]:
            episode = assignment.episode
            self.say(f"error in {episode.task} #{episode.initial_state}: {reason}")

    def __enter__(self) -> Scoring:
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        if self.pool is not None:
            self.pool.__exit__(kind)


def _spread(
    candidates: Sequence[Candidate], plan: Plan
) -> list[tuple[Candidate, int, tuple[str, ...], Instruct | None, Plan]]:
    """Every score to make; checks all choices before any simulator starts."""
    return [
        (
            candidate,
            candidate.horizon(horizon),
            candidate.row.choose_tasks(plan.tasks),
            _instruct(candidate.row, plan.mode),
            plan,
        )
        for candidate in candidates
        for horizon in (plan.horizons or (None,))
    ]


def _instruct(row: Benchmark, mode: str) -> Instruct | None:
    if mode == OWN:
        return None
    instruct = wrong_instruction(row)
    if instruct is None:
        raise ValueError(f"{row.name} has no wrong instructions; leave out --instruction")
    return instruct
