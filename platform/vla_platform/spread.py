"""How far repeated evaluations of one policy lie apart: its own randomness, nothing else (A.3)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from vla_platform.evaluation import REPEAT, Result
from vla_platform.ledger import Ledger


@dataclass(frozen=True)
class Spread:
    """rates: success of each repeat, 0 to 1, over the same initial states."""

    rates: tuple[float, ...]

    @property
    def deviation(self) -> float:
        """Standard deviation over the repeats, 0 to 1."""
        return statistics.stdev(self.rates)

    def __str__(self) -> str:
        percent = ", ".join(f"{100 * rate:.0f}" for rate in self.rates)
        return f"{percent}% (standard deviation {100 * self.deviation:.1f} points)"


def spread_of(ledger: Ledger, result: Result) -> Spread | None:
    """None for fewer than two complete repeats."""
    wanted = {episode.key: episode for episode in result.wanted.episodes()}
    won: dict[int, list[bool]] = {}
    for row in ledger.read(result.wanted.cell()).table.to_pylist():
        if row["key"] in wanted:
            won.setdefault(row["seed"] // REPEAT, []).append(row["success"])
    each = len(wanted) // result.wanted.repeats
    rates = [sum(outcomes) / each for _, outcomes in sorted(won.items()) if len(outcomes) == each]
    return Spread(tuple(rates)) if len(rates) > 1 else None


def spread_lines(ledger: Ledger, results: Sequence[Result]) -> list[str]:
    """A line for each result that was repeated."""
    found = [(result, spread_of(ledger, result)) for result in results]
    return [f"{result.name} over {len(s.rates)} repeats: {s}" for result, s in found if s]
