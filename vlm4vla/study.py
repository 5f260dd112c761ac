"""The paper's study as data: Tables 1-8 and 10, Figures 3 and 4, and the expert baselines.

A table is base runs × axes of overrides. Each choice on an axis carries the word by which
`paper.json` names its rows or columns, so that an entry finds the number the paper prints
for it. Entries whose runs have one id are one training, in whichever tables they stand.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from string import Formatter
from typing import Any

from envs.api import Benchmark, did_you_mean
from envs.benchmarks import benchmark
from vlm4vla.audit import PrintedTable, paper_tables
from vlm4vla.backbones import full_rows
from vlm4vla.run import Run
from vlm4vla.stages import STAGES

COLUMNS = {"calvin": "calvin", "simpler": "simpler", "libero_10": "libero10"}
"""Benchmark -> its column of `paper.json`, in tables with several; others keep their name."""


@dataclass(frozen=True)
class Entry:
    """One number of a table: a run, and where the paper prints its best score.

    The unit is the paper's: mean chain length (0-5) on CALVIN, percent elsewhere. run: None
    for a number that the paper quotes from other authors, and then source says from whom.
    """

    table: str
    row: str
    column: str
    run: Run | None
    source: str | None = None

    @property
    def benchmark(self) -> Benchmark | None:
        return benchmark(self.run.benchmark) if self.run else None

    @property
    def id(self) -> str | None:
        """The id of the training behind the number."""
        return self.run.id(benchmark(self.run.benchmark)) if self.run else None

    @property
    def printed(self) -> float | None:
        """The paper's number; None for a backbone, benchmark or table that it does not have."""
        table = printed_table(self.table)
        if self.row not in table.rows or self.column not in table.columns:
            return None
        return float(table.value(self.row, self.column))


@dataclass(frozen=True)
class Axis:
    """One thing that a table varies. choices: the paper's word for it -> fields of the run."""

    name: str
    choices: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Grid:
    """Every base run with every combination of the axes' choices."""

    base: tuple[Run, ...]
    axes: tuple[Axis, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table's runs. row, column: how `paper.json` spells the place of an entry, made of
    {backbone}, {benchmark} and the axes' words by their names.

    Several grids where the backbones are not all varied alike (Table 10).
    """

    name: str
    printed: str
    row: str
    column: str
    grids: tuple[Grid, ...]

    def __post_init__(self) -> None:
        """ValueError where entries of different runs would stand in one place."""
        for grid in self.grids:
            axes = {axis.name for axis in grid.axes}
            if axes - (told := self._words()) or told - axes - {"backbone", "benchmark"}:
                raise ValueError(
                    f"{self.name}: its row and column are made of {sorted(told)}, its runs vary "
                    f"backbone, benchmark, {', '.join(sorted(axes)) or 'nothing else'}"
                )

    def _words(self) -> set[str]:
        return {word for _, word, _, _ in Formatter().parse(self.row + self.column) if word}

    @property
    def title(self) -> str:
        return printed_table(self.name).title

    def entries(self, seed: int = 0) -> list[Entry]:
        """The table's entries that need a training, in its order."""
        return [self._entry(*one, seed) for grid in self.grids for one in _combinations(grid)]

    def _entry(self, run: Run, words: Mapping[str, str], seed: int) -> Entry:
        names = {"backbone": run.backbone, "benchmark": COLUMNS.get(run.benchmark, run.benchmark)}
        names.update(words)
        place = self.row.format(**names), self.column.format(**names)
        return Entry(self.name, *place, replace(run, seed=seed))


@dataclass(frozen=True)
class Figure:
    """A picture of what tables already hold: it needs no training of its own.

    tables: whose entries it shows. checkpoints: "best", or "every" for a spread over them.
    """

    name: str
    title: str
    tables: tuple[str, ...]
    checkpoints: str = "best"

    def entries(self, seed: int = 0) -> list[Entry]:
        return [entry for name in self.tables for entry in TABLES[name].entries(seed)]


def _combinations(grid: Grid) -> Iterable[tuple[Run, Mapping[str, str]]]:
    """Each run with the words of the choices that made it, by axis."""
    for run, *chosen in itertools.product(grid.base, *(axis.choices for axis in grid.axes)):
        words = {axis.name: word for axis, word in zip(grid.axes, chosen, strict=True)}
        changes = [axis.choices[words[axis.name]] for axis in grid.axes]
        yield replace(run, **{k: v for change in changes for k, v in change.items()}), words


def _on(backbones: Iterable[str], *benchmarks: str) -> tuple[Run, ...]:
    return tuple(Run(name, where) for name in backbones for where in benchmarks)


def _aux(*names: str) -> Axis:
    stages = {f"+{name}": {"aux": STAGES[name].id} for name in names}
    return Axis("aux", {"": {}, **stages})


_ALL = tuple(row.name for row in full_rows())
_Q3, _Q7, _P1 = "qwen2.5vl-3b", "qwen2.5vl-7b", "paligemma-1"
_VISION, _EMBED = {"freeze": ("vision",)}, {"freeze": ("embed",)}
_FREEZE = Axis("freeze", {"": {}, "+freeze_vision": _VISION, "+freeze_embed": _EMBED})
_FREEZE_VISION = Axis("freeze", {"": {}, "+freeze_vision": _VISION})
_TRAINED_WITH = Axis("freeze", {"freeze_vision": _VISION, "unfreeze_vision": {}})
_INJECTED = Axis(
    "aux",
    {
        "baseline": {},
        "freeze_vision_ft": {"aux": STAGES["fast-vision-frozen"].id},
        "unfreeze_vision_ft": {"aux": STAGES["fast-vision-unfrozen"].id},
    },
)
_LR = Axis("lr", {word: {"lr": float(word)} for word in ("1e-5", "2e-5", "5e-5", "1e-4")})
_PROMPT = Axis("prompt", {"long": {}, "short": {"prompt": "short"}})
_PX = Axis("px", {str(px): {"image_px": px} for px in (224, 512, 768)})
_INIT = Axis("init", {"": {}, " scratch": {"init": "scratch"}})


def _table(number: int, topic: str, row: str, column: str, *grids: Grid) -> Table:
    return Table(f"table{number}", f"table{number}_{topic}", row, column, grids)


_AUX_GRIDS = (
    Grid(_on([_Q3], "calvin"), (_aux("robopoint", "vica332k", "bridgevqa", "robo2vlm"),)),
    Grid(_on([_Q7], "calvin"), (_aux("robobrain2", "omni-generation", "vqa-mix"),)),
)
_ROW, _COLUMN = "{backbone}", "{benchmark}"
_ROWS = (
    _table(1, "calvin", _ROW, "avg_len", Grid(_on(_ALL, "calvin"))),
    _table(2, "simpler_libero", _ROW, _COLUMN, Grid(_on(_ALL, "simpler", "libero_10"))),
    _table(
        3,
        "freeze",
        _ROW + "{freeze}",
        _COLUMN,
        Grid(_on([_Q3, _Q7, _P1], "calvin", "simpler"), (_FREEZE,)),
    ),
    _table(
        4,
        "action_injection",
        "{freeze}/{aux}",
        _COLUMN,
        Grid(_on(["qwen3vl-4b"], "simpler"), (_TRAINED_WITH, _INJECTED)),
    ),
    _table(5, "lr_calvin", _ROW, "{lr}", Grid(_on([_Q3, _Q7, _P1], "calvin"), (_LR,))),
    _table(
        6,
        "prompt",
        _ROW + " {prompt}",
        _COLUMN,
        Grid(_on([_Q3, _Q7], "calvin", "simpler"), (_PROMPT,)),
    ),
    _table(
        7,
        "resolution_calvin",
        _ROW + "{freeze}",
        "{px}",
        Grid(_on([_Q3, _Q7], "calvin"), (_FREEZE_VISION, _PX)),
    ),
    _table(
        8,
        "scratch",
        _ROW + "{init}",
        _COLUMN,
        Grid(_on([_Q3, _Q7, _P1], "calvin", "simpler"), (_INIT,)),
    ),
    _table(10, "aux_calvin", _ROW + "{aux}", "avg_len", *_AUX_GRIDS),
)


def _by_name(rows: Sequence[Table]) -> Mapping[str, Table]:
    if twice := [name for name, n in Counter(row.name for row in rows).items() if n > 1]:
        raise ValueError(f"{', '.join(twice)} is there twice: give the new table a free number")
    return {row.name: row for row in rows}


TABLES = _by_name(_ROWS)
_FIGURES = (
    Figure("figure3", "Figure 3: general capability of VLMs and of policies", ("table1", "table2")),
    Figure("figure4", "Figure 4: auxiliary tasks over checkpoints", ("table10",), "every"),
)
FIGURES: Mapping[str, Figure] = {row.name: row for row in _FIGURES}

_OPENVLA = Run("prism-dinosiglip-224px-7b", "calvin", policy="openvla")
_PI0 = Run("paligemma-1", "calvin", policy="pi0")
_OPENVLA_SOURCE = "OpenVLA's official results (Kim et al., arXiv 2406.09246)"
_THINKACT_SOURCE = "ThinkAct's official results (Huang et al., arXiv 2507.16815)"
BASELINES: tuple[Entry, ...] = (
    Entry("table1", "openvla*", "avg_len", _OPENVLA),
    Entry("table1", "pi0*", "avg_len", _PI0),
    Entry("table2", "openvla", "simpler", None, _OPENVLA_SOURCE),
    Entry("table2", "openvla", "libero10", None, _OPENVLA_SOURCE),
    Entry("table2", "pi0*", "simpler", replace(_PI0, benchmark="simpler")),
    Entry("table2", "pi0*", "libero10", replace(_PI0, benchmark="libero_10")),
    Entry("table2", "thinkact", "simpler", None, _THINKACT_SOURCE),
    Entry("table2", "thinkact", "libero10", None, _THINKACT_SOURCE),
)
"""Expert policies (4.1.1): those with * trained again by the authors, the others quoted.

ThinkAct sees proprioception, which no other row does.
"""


@cache
def _paper() -> dict[str, PrintedTable]:
    return paper_tables()


def printed_table(name: str) -> PrintedTable:
    """What the paper prints in `TABLES[name]`: nothing for a table that was added here."""
    key = TABLES[name].printed
    topic = key.removeprefix(f"{name}_").replace("_", " ")
    title = f"{name.replace('table', 'Table ')}: {topic} (not in the paper)"
    return _paper().get(key) or PrintedTable(key, {}, {}, title)


def on(benchmarks: Sequence[str], entries: Iterable[Entry]) -> list[Entry]:
    """The entries whose runs are on these benchmarks; all when none is named."""
    return [e for e in entries if not benchmarks or (e.run and e.run.benchmark in benchmarks)]


def trainings(entries: Iterable[Entry]) -> dict[str, Run]:
    """Distinct resolved runs by id, in the order of their first entry."""
    runs = {entry.id: entry.run for entry in entries}
    return {
        key: run.resolved(benchmark(run.benchmark).recipe)
        for key, run in runs.items()
        if key is not None and run is not None
    }


def choose(names: Sequence[str] | None) -> list[Table | Figure]:
    """Tables and figures by name ("5" is table5), all for None; ValueError for a wrong name."""
    known: dict[str, Table | Figure] = {**TABLES, **FIGURES}
    wanted = known if names is None else dict.fromkeys(map(_full_name, names))
    for name in wanted:
        if name == "table9":
            raise ValueError(
                "Table 9 counts parameters, so nothing is trained for it: "
                "`python -m vlm4vla.backbones` prints it."
            )
        if name not in known:
            raise did_you_mean("table", name, known)
    return [known[name] for name in wanted]


def _full_name(name: str) -> str:
    return f"table{name}" if name.isdigit() else name.lower()
