"""Scores of any policies on any benchmarks, all in one pool; Ray starts only when one is due."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envs.api import Benchmark
from envs.benchmarks import wrong_instruction
from vla_platform import evaluation
from vla_platform.artifacts import Checkpoint
from vla_platform.candidates import Candidate
from vla_platform.cluster import Cluster
from vla_platform.evaluation import OWN, WRONG_WORD, Instruct, Result, Wanted
from vla_platform.player import Played, Player
from vla_platform.store import Store

if TYPE_CHECKING:
    from vla_platform.inference import LoadPolicy


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


class Report(Played):
    def costs(self) -> str:
        if not self.played and not self.errors:
            return "played nothing: everything was in the store"
        return (
            f"played {self.played} episodes in {self.seconds:.0f} s "
            f"({60 * self.played / max(self.seconds, 1e-9):.0f}/min); {self.errors} errors"
        )


class Scoring(Player):
    """Plays what is missing. load: "module:function" that makes a policy of a folder, imported
    only when something is played; say: where sentences go."""

    def __init__(
        self, store: Store, cluster: Cluster, load: str, say: Callable[[str], None]
    ) -> None:
        super().__init__(store, cluster, say)
        self.load = load
        self.local = False
        self.fingerprints: dict[str, str] = {}

    def run(self, candidates: Sequence[Candidate], plan: Plan) -> Report:
        """Every candidate at every horizon; ValueError before anything is played."""
        report = Report([self._result(*each) for each in _spread(candidates, plan)])
        if len({candidate.row.name for candidate in candidates}) > 1:
            for result in report.results:
                result.name += f" on {result.wanted.benchmark.name}"
        _tell_apart(report.results)
        self.local = any(isinstance(each.policy, Checkpoint) for each in candidates)
        wanted = [result.wanted for result in report.results]
        self.play(wanted, report)
        if plan.film:
            self.film(wanted, plan.film, report)
        return report

    def loader(self) -> LoadPolicy | None:
        if not self.local:
            return None
        module, name = self.load.split(":")
        load: LoadPolicy = getattr(importlib.import_module(module), name)
        return load

    def _result(
        self,
        candidate: Candidate,
        horizon: int,
        tasks: tuple[str, ...],
        instruct: Instruct | None,
        plan: Plan,
    ) -> Result:
        row, ours = candidate.row, isinstance(candidate.policy, Checkpoint)
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
            precision=self.cluster.answers_in if ours else "fp32",  # a server's is its own
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


def _tell_apart(results: Sequence[Result]) -> None:
    """Policies of one name, as of two folders called alike, get their digests beside it."""
    digests: dict[str, set[str]] = {}
    for result in results:
        digests.setdefault(result.name, set()).add(result.wanted.checkpoint.digest)
    for result in results:
        if len(digests[result.name]) > 1:
            result.name += f" {result.wanted.checkpoint.digest[:8]}"


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
