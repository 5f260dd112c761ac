"""The comparison tables as files: CSV for scripts, Markdown and LaTeX for papers."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from dashboards.cells import Cell
from dashboards.report.entries import SHOWN, Line, TableView
from dashboards.report.scores import RunScore
from vlm4vla.analysis import Estimate

HEADING = ("row", "column", "paper", "ours", "difference", "larger than noise", "status")


def as_csv(view: TableView) -> str:
    """Full precision, an empty field where there is no result."""
    names = ("value", "low", "high")
    columns = [f"{kind}_{name}" for kind in ("paper", "ours", "difference") for name in names]
    head = ("table", "row", "column", *columns, "p", "larger_than_noise", "status", "note", "run")
    lines = [
        (
            *(view.name, line.row, line.column),
            *(*_three(line.paper), *_three(_best(line)), *_three(line.gap)),
            *(line.p, line.beyond, line.score.status, line.score.note, line.run),
        )
        for line in view.lines
    ]
    return write_csv(head, lines)


def write_csv(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return sink.getvalue()


def _best(line: Line) -> Estimate | None:
    return line.score.best if line.score.status in SHOWN else None


def _three(estimate: Estimate | None) -> tuple[float | None, ...]:
    return (None,) * 3 if estimate is None else tuple(estimate)


def as_markdown(view: TableView) -> str:
    """A table with its title."""
    lines = [HEADING, ("---",) * len(HEADING), *map(_texts, view.lines)]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"**{view.printed.title}**\n\n{body}\n"


def as_latex(view: TableView) -> str:
    """A booktabs tabular with its caption."""
    body = "\n".join(
        " & ".join(_escaped(text) for text in _texts(line)) + r" \\" for line in view.lines
    )
    head = " & ".join(HEADING)
    return (
        "\\begin{table}\n\\centering\n"
        f"\\caption{{{_escaped(view.printed.title)}}}\n\\label{{tab:{view.name}}}\n"
        f"\\begin{{tabular}}{{ll{'r' * 3}ll}}\n\\toprule\n{head} \\\\\n\\midrule\n"
        f"{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )


def _texts(line: Line) -> tuple[str, ...]:
    marked = {None: "", True: "yes", False: "no"}[line.beyond]
    ours, gap = _text(_best(line), line.decimals), _text(line.gap, line.decimals, "+")
    paper = _text(line.paper, line.decimals)
    return line.row, line.column, paper, ours, gap, marked, line.score.status


def _text(estimate: Estimate | None, decimals: int, sign: str = "") -> str:
    if estimate is None:
        return "–"
    value, low, high = (f"{number:{sign}.{decimals}f}" for number in estimate)
    return f"{value} [{low}, {high}]"


_SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
}


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(c, c) for c in text)


_FIELDS = (
    *("benchmark", "horizon", "instruction_mode", "profile", "precision", "protocol"),
    *("fingerprint", "schema"),
)
_SUMS = ("name", "successes", "trials", "completed", "steps", "wall_s")


def cells_csv(scores: Sequence[RunScore], strangers: Sequence[Cell]) -> str:
    """Every cell of the store and task, with its status: the report's raw material."""
    placed: list[tuple[str, str, int | None, Cell]] = [
        (one.run.id, one.run.name, one.run.step_of(cell), cell)
        for one in scores
        for cell in one.run.cells
    ]
    placed += [("", "", None, cell) for cell in strangers]
    lines = [
        (
            *(run, name, step, cell.id, cell.status),
            *(cell.fields.get(field) for field in _FIELDS),
            *(getattr(task, field) for field in _SUMS),
        )
        for run, name, step, cell in placed
        for task in cell.tasks
    ]
    head = ("run", "backbone", "step", "cell", "status", *_FIELDS, "task", *_SUMS[1:])
    return write_csv(head, lines)
