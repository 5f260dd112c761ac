"""Every number of the paper's tables beside ours: the difference, its interval, and whether
it is larger than noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from dashboards.report.scores import RunScore
from vlm4vla.analysis import Estimate, wilson
from vlm4vla.audit import Finding, PrintedTable, audit, paper_tables
from vlm4vla.compare import (
    MEASURED,
    MISSING,
    REDUCED,
    Effect,
    Score,
    beyond_noise,
    chained,
    difference,
    p_value,
    paired_effect,
    printed,
    protocol,
    scaled,
)
from vlm4vla.run import Run
from vlm4vla.selection import Outcomes
from vlm4vla.stages import STAGES
from vlm4vla.study import BASELINES, TABLES, Entry, printed_table

SHOWN = (MEASURED, REDUCED)
"""Statuses whose number may stand beside the paper's."""
MODEL = ("policy", "aux", "freeze", "init", "prompt", "profile")
"""Fields of a run that its tiny stand-in shares with it."""


@dataclass(frozen=True)
class Line:
    """One number. paper: with the noise of its trials, None where it prints nothing. gap: ours
    minus the paper's.

    beyond: whether the difference is larger than noise, all of the table's considered (Holm).
    effect: of the row against its base row, ours, where the paper prints one (printed_effect).
    stand_in: the same question asked of a tiny model on another benchmark; never compared.
    """

    row: str
    column: str
    paper: Estimate | None
    decimals: int
    score: Score
    run: str | None = None
    gap: Estimate | None = None
    p: float | None = None
    beyond: bool | None = None
    printed_effect: float | None = None
    effect: Effect | None = None
    effect_beyond: bool | None = None
    stand_in: RunScore | None = None
    part: bool = False


@dataclass(frozen=True)
class TableView:
    """A table of the paper or one added here. lines: [] where nothing is rolled out (Table 9)."""

    name: str
    printed: PrintedTable
    lines: tuple[Line, ...]
    findings: tuple[Finding, ...]

    @property
    def has_stand_ins(self) -> bool:
        return any(line.stand_in for line in self.lines)

    @property
    def has_effects(self) -> bool:
        return any(line.printed_effect is not None for line in self.lines)


def table_views(scores: Sequence[RunScore]) -> list[TableView]:
    """All of the paper's tables, in its order, and those that were added to them."""
    by_id = {one.run.id: one for one in scores}
    named = {table.printed: name for name, table in TABLES.items()}
    added = {table.printed: printed_table(name) for name, table in TABLES.items()}
    return [
        TableView(
            named.get(key, key.split("_")[0]),
            table,
            tuple(_lines(named[key], table, by_id, scores)) if key in named else (),
            tuple(audit(table)),
        )
        for key, table in (paper_tables() | added).items()
    ]


def _lines(
    name: str, table: PrintedTable, by_id: Mapping[str, RunScore], scores: Sequence[RunScore]
) -> list[Line]:
    entries = [*TABLES[name].entries(), *(e for e in BASELINES if e.table == name)]
    rows = _order(table.rows, (entry.row for entry in entries))
    columns = _order(table.columns, (entry.column for entry in entries))
    entries.sort(key=lambda entry: (rows[entry.row], columns[entry.column]))
    lines = []
    for entry in entries:
        found = by_id.get(entry.id or "")
        lines += _parts(entry, table, found)
        lines.append(_line(entry, table, found, scores))
    lines = _with_effects(lines, table, entries, by_id)
    return _marked(lines)


def _order(printed: Iterable[str], all_: Iterable[str]) -> dict[str, int]:
    """Places of names: as printed, then what the paper does not have, as it was added."""
    return {name: index for index, name in enumerate(dict.fromkeys([*printed, *all_]))}


def _line(
    entry: Entry, table: PrintedTable, found: RunScore | None, scores: Sequence[RunScore]
) -> Line:
    name = entry.run.benchmark if entry.run else _benchmark_of(entry.column)
    known = entry.printed is not None
    paper = printed(table, entry.row, entry.column, name) if known else None
    decimals = table.columns.get(entry.column, 3 if chained(name) else 1)
    if entry.run is None:
        quoted = Score(MISSING, "quoted from its authors: nothing is trained for it")
        return Line(entry.row, entry.column, paper, decimals, quoted)
    score = found.score if found else Score(MISSING, "no such run in the store")
    twin = stand_in(entry.run, scores)
    return _compared(Line(entry.row, entry.column, paper, decimals, score, entry.id, stand_in=twin))


def _benchmark_of(column: str) -> str:
    return {"libero10": "libero_10"}.get(column, column)


def _compared(line: Line) -> Line:
    """With the difference, where ours is a result. The winner's best score is what the paper
    prints, so it is what is compared."""
    if line.paper is None or line.score.status not in SHOWN or line.score.best is None:
        return line
    gap = difference(line.score.best, line.paper)
    return replace(line, gap=gap, p=p_value(gap))


def _parts(entry: Entry, table: PrintedTable, found: RunScore | None) -> list[Line]:
    """The columns that an entry's number is made of: a chain's rates, a benchmark's tasks."""
    if entry.run is None:
        return []
    columns = table.averages.get(entry.column, ())
    if table.chain.get("length") == entry.column:
        columns = tuple(table.chain["rates"])
    lines = []
    for column in columns:
        paper, score = _rate(table, entry.row, column), _part_score(column, columns, found)
        decimals = table.columns[column]
        lines.append(
            _compared(Line(entry.row, column, paper, decimals, score, entry.id, part=True))
        )
    return lines


def _rate(table: PrintedTable, row: str, column: str) -> Estimate | None:
    if row not in table.rows:
        return None
    value, trials = float(table.value(row, column)), table.trials_of(row, column)
    scale = 100 if table.percent else 1
    low, high = wilson(round(value / scale * (trials or 1000)), trials or 1000)
    return Estimate(value, min(value, scale * low), max(value, scale * high))


def _part_score(column: str, columns: Sequence[str], found: RunScore | None) -> Score:
    if found is None:
        return Score(MISSING, "no such run in the store")
    if found.score.status not in SHOWN:
        return Score(found.score.status, found.score.note)
    row = protocol(found.run.benchmark)
    assert row is not None
    chain = row.chain > 1
    outcomes = found.winner
    if chain and found.cell:
        outcomes = found.cell.reached(columns.index(column) + 1)
    values = [
        value
        for task, states in outcomes.items()
        for state, value in states.items()
        if state < row.trials and (chain or column in task)
    ]
    if not values:
        return Score(MISSING, "this task was not played")
    rate = Estimate(sum(values) / len(values), *wilson(sum(values), len(values)))
    best = rate if chain else scaled(rate, 100)
    return replace(found.score, best=best, confirmed=None, trials=len(values))


def _with_effects(
    lines: list[Line],
    table: PrintedTable,
    entries: Iterable[Entry],
    by_id: Mapping[str, RunScore],
) -> list[Line]:
    """Each printed change against a base row, beside ours on the same initial states."""
    runs = {(entry.row, entry.column): by_id.get(entry.id or "") for entry in entries}
    changed = []
    for line in lines:
        said = table.differences.get(line.row, {})
        if line.column in said:
            pair = runs.get((line.row, line.column)), runs.get((said["from"], line.column))
            line = replace(line, printed_effect=said[line.column], effect=_effect(*pair))
        changed.append(line)
    return changed


def _effect(one: RunScore | None, base: RunScore | None) -> Effect | None:
    if one is None or base is None or not (one.winner and base.winner):
        return None
    if one.score.status not in SHOWN or base.score.status not in SHOWN:
        return None
    row = protocol(one.run.benchmark)
    assert row is not None
    first, second = (_selection(winner, row.trials) for winner in (one.winner, base.winner))
    try:
        return paired_effect(one.run.benchmark, first, second)
    except ValueError:
        return None


def _selection(winner: Outcomes, trials: int) -> Outcomes:
    return {t: {s: v for s, v in states.items() if s < trials} for t, states in winner.items()}


def _marked(lines: list[Line]) -> list[Line]:
    """Holm over the table's differences, and apart over its effects."""
    compared = [line for line in lines if line.p is not None and not line.part]
    marks = beyond_noise([line.p for line in compared if line.p is not None])
    beyond = {id(line): mark for line, mark in zip(compared, marks, strict=True)}
    effects = [line for line in lines if line.effect is not None]
    marks = beyond_noise([line.effect.p for line in effects if line.effect])
    changed = {id(line): mark for line, mark in zip(effects, marks, strict=True)}
    return [
        replace(line, beyond=beyond.get(id(line)), effect_beyond=changed.get(id(line)))
        for line in lines
    ]


def stand_in(run: Run, scores: Sequence[RunScore]) -> RunScore | None:
    """The tiny model's run that asks the entry's question on the laptop, if there is one.

    Of several the longest trained, then the most played; an explicit learning rate or image
    size has no counterpart on another benchmark.
    """
    row = protocol(run.benchmark)
    assert row is not None
    if run.lr not in (None, row.recipe.lr) or run.image_px != 224:
        return None
    wanted = {name: getattr(run, name) for name in MODEL} | {"aux": _stage(run.aux)}
    found = [
        one
        for one in scores
        if one.run.name == f"tiny-{run.backbone}"
        and {name: _plain(one.run.config, name) for name in MODEL} == wanted
        and one.run.config.get("image_px") == 224
    ]
    return max(found, key=lambda one: (one.run.trained, one.score.trials), default=None)


def _plain(config: Mapping[str, object], name: str) -> object:
    value = config.get(name)
    if name == "aux":
        return _stage(value if isinstance(value, str) else None)
    return tuple(value) if isinstance(value, list) else value


def _stage(aux: str | None) -> str | None:
    """An auxiliary stage by its name, whatever its id or backbone."""
    if aux is None:
        return None
    full = aux.removeprefix("tiny-")
    return next((name for name in STAGES if full.startswith(name)), aux)
