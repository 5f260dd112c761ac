"""Does a printed table agree with itself? Rules for any table; the paper's own are data.

A printed number stands for every value that rounds to it, so a rule only fires when no such
values could satisfy it. `paper.json` holds the paper's tables as printed, mistakes included.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Finding:
    """A row that contradicts itself: which rule, and the arithmetic that shows it."""

    table: str
    row: str
    rule: str
    detail: str


@dataclass(frozen=True)
class PrintedTable:
    """Numbers as printed, and what must hold between them.

    columns: decimals printed, by name. rows: values in the order of the columns.
    chain: {"rates": success at 1, 2, …; "length": the mean length}. averages: {mean: parts}.
    trials: how many lie behind a rate, by column (None: not stated); row_trials: where a row
    differs. percent: rates with trials are printed as percentages. differences: {row:
    {"from": row, column: printed difference}}. halves, squares: {column: of which}.
    """

    name: str
    columns: Mapping[str, int]
    rows: Mapping[str, tuple[float, ...]]
    title: str = ""
    percent: bool = False
    chain: Mapping[str, Any] = field(default_factory=dict)
    averages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    trials: Mapping[str, int | None] = field(default_factory=dict)
    row_trials: Mapping[str, Mapping[str, int | None]] = field(default_factory=dict)
    differences: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    halves: Mapping[str, str] = field(default_factory=dict)
    squares: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    def value(self, row: str, column: str) -> Fraction:
        """The printed number, exactly."""
        printed = self.rows[row][list(self.columns).index(column)]
        return Fraction(f"{printed:.{self.columns[column]}f}")

    def unit(self, column: str) -> Fraction:
        """The last printed digit's worth."""
        return Fraction(1, 10 ** self.columns[column])

    def shown(self, row: str, column: str) -> str:
        return f"{float(self.value(row, column)):.{self.columns[column]}f}"

    def trials_of(self, row: str, column: str) -> int | None:
        return self.row_trials.get(row, {}).get(column, self.trials.get(column))

    def count(self, row: str, column: str) -> Fraction | None:
        """The only rate k/n that prints as this number; None if none does or n is unknown."""
        trials = self.trials_of(row, column)
        if trials is None:
            return None
        scale = 100 if self.percent else 1
        wanted, unit = self.value(row, column), self.unit(column)
        nearest = math.floor(wanted * trials / scale)
        rates = [Fraction(scale * k, trials) for k in (nearest, nearest + 1)]
        fits = [rate for rate in rates if prints_as(rate, wanted, unit)]
        return fits[0] if len(fits) == 1 else None


def prints_as(exact: Fraction, printed: Fraction, unit: Fraction) -> bool:
    """Rounded either way at a tie, or cut off: authors do all three."""
    cut = 0 <= abs(exact) - abs(printed) < unit and exact * printed >= 0
    return abs(exact - printed) <= unit / 2 or cut


Rule = Callable[[PrintedTable, str], Iterator[str]]


def _increasing_chain(table: PrintedTable, row: str) -> Iterator[str]:
    """A sequence that did k + 1 subtasks did k, so rates cannot increase."""
    rates = table.chain.get("rates", ())
    for before, after in itertools.pairwise(rates):
        if table.value(row, after) > table.value(row, before):
            yield (
                f"{after} {table.shown(row, after)} is above"
                f" {before} {table.shown(row, before)}, but a chain's rates cannot increase"
            )


def _chain_length(table: PrintedTable, row: str) -> Iterator[str]:
    """The mean number of subtasks is the sum of the rates of doing at least 1, 2, …"""
    if not table.chain:
        return
    rates, length = table.chain["rates"], table.chain["length"]
    total = sum(table.value(row, rate) for rate in rates)
    slack = sum(table.unit(column) for column in (*rates, length)) / 2
    if abs(total - table.value(row, length)) > slack:
        yield f"the rates add up to {float(total):.3f}, {length} says {table.shown(row, length)}"


def _average(table: PrintedTable, row: str) -> Iterator[str]:
    """A mean of tasks equals its parts; where the trials are known, exactly."""
    for mean, parts in table.averages.items():
        counts = [table.count(row, part) for part in parts]
        exact = [count for count in counts if count is not None]
        printed = table.value(row, mean)
        if len(exact) == len(parts):
            average = sum(exact, Fraction(0)) / len(parts)
            fits = prints_as(average, printed, table.unit(mean))
        else:
            average = sum((table.value(row, p) for p in parts), Fraction(0)) / len(parts)
            slack = sum(table.unit(p) for p in parts) / len(parts) / 2 + table.unit(mean) / 2
            fits = abs(average - printed) <= slack
        if not fits:
            yield (
                f"the mean of {', '.join(parts)} is {float(average):.3f},"
                f" {mean} says {table.shown(row, mean)}"
            )


def _difference(table: PrintedTable, row: str) -> Iterator[str]:
    """A printed difference is the difference of the printed numbers or of the true ones."""
    for column, printed in table.differences.get(row, {}).items():
        if column == "from":
            continue
        base, unit = table.differences[row]["from"], table.unit(column)
        gap = table.value(row, column) - table.value(base, column)
        if abs(gap - Fraction(str(printed))) > unit * 3 / 2:
            decimals = table.columns[column]
            yield (
                f"{column}: {table.shown(row, column)} - {table.shown(base, column)} is"
                f" {float(gap):+.{decimals}f}, printed {printed:+.{decimals}f}"
            )


def _impossible_rate(table: PrintedTable, row: str) -> Iterator[str]:
    """A rate over n trials is k/n for some whole k."""
    scale = 100 if table.percent else 1
    for column in table.columns:
        trials = table.trials_of(row, column)
        if trials is None:
            continue
        value, unit = table.value(row, column), table.unit(column)
        below = math.floor(value * trials / scale)
        near = [Fraction(scale * k, trials) for k in (below, below + 1)]
        if not any(prints_as(rate, value, unit) for rate in near):
            shown = " and ".join(f"{float(rate):.{table.columns[column] + 1}f}" for rate in near)
            yield (
                f"{column} {table.shown(row, column)} is no k/{trials}:"
                f" {below}/{trials} and {below + 1}/{trials} are {shown}"
            )


def _half(table: PrintedTable, row: str) -> Iterator[str]:
    for column, whole in table.halves.items():
        if 2 * table.value(row, column) != table.value(row, whole):
            yield (
                f"{column} {table.shown(row, column)} is not half of"
                f" {whole} {table.shown(row, whole)}"
            )


def _square(table: PrintedTable, row: str) -> Iterator[str]:
    for column, root in table.squares.items():
        size, unit = abs(table.value(row, root)), table.unit(root) / 2
        low, high = max(size - unit, Fraction(0)) ** 2, (size + unit) ** 2
        slack = table.unit(column) / 2
        if not low - slack <= table.value(row, column) <= high + slack:
            yield f"{column} {table.shown(row, column)} is not the square of {root}"


RULES: dict[str, Rule] = {
    "chain_monotone": _increasing_chain,
    "chain_sum": _chain_length,
    "average": _average,
    "difference": _difference,
    "possible_rate": _impossible_rate,
    "half": _half,
    "r_squared": _square,
}


def audit(table: PrintedTable) -> list[Finding]:
    """Every row of the table that breaks a rule, in the table's order."""
    return [
        Finding(table.name, row, rule, _noted(detail, table.notes.get(row)))
        for row in table.rows
        for rule, check in RULES.items()
        for detail in check(table, row)
    ]


def _noted(detail: str, note: str | None) -> str:
    return f"{detail} ({note})" if note else detail


def paper_tables() -> dict[str, PrintedTable]:
    """The paper's tables (and Figure 3's numbers) as printed, by name."""
    text = resources.files("vlm4vla").joinpath("paper.json").read_text(encoding="utf-8")
    return {
        name: PrintedTable(
            name=name, **{**fields, "rows": {row: tuple(v) for row, v in fields["rows"].items()}}
        )
        for name, fields in json.loads(text)["tables"].items()
    }


def audit_paper() -> list[Finding]:
    """The rows of the paper that contradict themselves."""
    return [finding for table in paper_tables().values() for finding in audit(table)]
