"""What the report's interactive figures are drawn from: plain values for the page's script."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from dashboards.report.entries import SHOWN, Line, TableView
from dashboards.report.scores import RunScore, spread
from dashboards.runs import Run, Similarity, thin
from vlm4vla.analysis import box
from vlm4vla.audit import paper_tables
from vlm4vla.capability import Capability, Score, capability
from vlm4vla.compare import protocol, unit
from vlm4vla.study import FIGURES, TABLES

AXES = (
    *(("table1", name) for name in ("task1", "task2", "task3", "task4", "task5", "avg_len")),
    *(("table2", name) for name in ("carrot", "eggplant", "spoon", "cube", "simpler", "libero10")),
)
"""Figure 1's axes, around the clock."""
BENCHMARKS = {"calvin": "CALVIN", "simpler": "SimplerEnv", "libero": "LIBERO"}
_COLUMNS = {
    "calvin": ("table1", "avg_len", "calvin"),
    "simpler": ("table2", "simpler", "simpler"),
    "libero": ("table2", "libero10", "libero_10"),
}
WEIGHT = 1.0
"""Where Figure 3's slider begins: no down-weighting, for the paper prints none."""


def radar(views: Sequence[TableView]) -> dict[str, Any]:
    """Figure 1: the paper's backbones (dashed) and ours (solid) over all tasks."""
    lines, series = _by_place(views), []
    for colour, row in enumerate(_backbones(views)):
        paper = [_paper(lines.get((table, row, name))) for table, name in AXES]
        ours = [_ours(lines.get((table, row, name))) for table, name in AXES]
        if any(value is not None for value in paper):
            series.append({"name": row, "ours": False, "colour": colour, "values": paper})
        if any(value is not None for value in ours):
            named = {"name": f"{row} (ours)", "ours": True, "colour": colour, "values": ours}
            series.append(named)
    columns = zip(*(one["values"] for one in series), strict=True)
    tops = [max(v for v in values if v is not None) or 1 for values in columns]
    axes = [{"name": name, "top": top} for (_, name), top in zip(AXES, tops, strict=True)]
    return {"axes": axes, "series": series}


def _backbones(views: Iterable[TableView]) -> list[str]:
    """Rows of Table 1 without its experts: the paper's backbones, then those added here."""
    rows = dict.fromkeys(line.row for view in views if view.name == "table1" for line in view.lines)
    return [row for row in rows if not row.endswith("*")]


def _by_place(views: Iterable[TableView]) -> Mapping[tuple[str, str, str], Line]:
    return {(view.name, line.row, line.column): line for view in views for line in view.lines}


def _ours(line: Line | None) -> float | None:
    best = line.score.best if line and line.score.status in SHOWN else None
    return None if best is None else round(best.value, 3)


def _paper(line: Line | None) -> float | None:
    return line.paper.value if line and line.paper else None


def scatter(views: Sequence[TableView], scores: Sequence[Score]) -> dict[str, Any]:
    """Figure 3: a point per backbone and benchmark, ours where measured, else the paper's."""
    lines, printed = _by_place(views), paper_tables()["figure3_correlation"]
    placed = {row: _placed(row, scores) for row in _backbones(views)}
    series = []
    for name, (table, column, benchmark) in _COLUMNS.items():
        points = [
            _point(found, line, benchmark)
            for row, found in placed.items()
            for line in [lines.get((table, row, column))]
            if found and line and _value(line) is not None
        ]
        r = printed.shown(name, "r")
        series.append({"name": BENCHMARKS[name], "points": points, "printed": r})
    unplaced = [row for row, found in placed.items() if found is None]
    return {"series": series, "weight": WEIGHT, "unplaced": unplaced}


def _placed(row: str, scores: Sequence[Score]) -> Capability | None:
    try:
        return capability(row, scores)
    except ValueError:  # a family of one's own, for which A.4 names no benchmarks
        return None


def _value(line: Line) -> float | None:
    """Ours where measured, else the paper's."""
    ours = _ours(line)
    return _paper(line) if ours is None else ours


def _point(found: Capability, line: Line, benchmark: str) -> dict[str, Any]:
    ours, value = _ours(line), _value(line)
    assert value is not None
    used = f"{len(found.used)} of {len(found.used) + len(found.missing)} benchmarks"
    return {
        "name": found.backbone,
        "x": found.value,
        "special": not found.backbone.startswith("qwen"),
        "y": 100 * value / unit(benchmark),
        "text": f"{value} ({'paper' if ours is None else 'ours'})",
        "ours": ours is not None,
        "used": used,
    }


def boxes(scores: Sequence[RunScore]) -> dict[str, Any]:
    """Figure 4's entries first, then every other run of the store, by benchmark."""
    entries = {entry.id: entry for entry in FIGURES["figure4"].entries()}
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in scores:
        values = spread(one.run)
        if not values:
            continue
        entry = entries.get(one.run.id)
        title = "Auxiliary tasks, CALVIN" if entry else one.run.benchmark
        name = entry.row if entry else f"{one.run.name} {how(one.run)}".strip()
        groups[title].append(_box(name, values, entry.printed if entry else None))
    ordered = sorted(groups.items(), key=lambda group: group[0] != "Auxiliary tasks, CALVIN")
    return {"groups": [{"title": title, "boxes": found} for title, found in ordered]}


def _box(name: str, values: Sequence[float], paper: float | None) -> dict[str, Any]:
    found = box(values)
    ends = {key: getattr(found, key) for key in ("low", "q1", "median", "q3", "high")}
    return {"name": name, "values": list(values), "paper": paper, **ends}


def how(run: Run) -> str:
    """In what the run differs from its backbone's plain fine-tuning by the benchmark's recipe."""
    config, said = run.config, []
    if config.get("freeze"):
        said.append("freeze " + "+".join(config["freeze"]))
    if config.get("aux"):
        said.append("+" + str(config["aux"]).rpartition("-")[0])
    plain: dict[str, Any] = {
        "init": "pretrained",
        "prompt": "native",
        "profile": "paper",
        "image_px": 224,
    }
    plain |= {"policy": "action_query", "seed": 0}
    row = protocol(run.benchmark)
    plain |= {name: getattr(row.recipe, name) for name in ("steps", "lr", "batch") if row}
    for name, usual in plain.items():
        if config and config.get(name, usual) != usual:
            said.append(f"{name} {config[name]}")
    return ", ".join(said)


PARTS = ("vision", "language")


def similarity(run: Run) -> list[dict[str, Any]]:
    """Figure 5's claim: a plot per reference, a line per layer over the steps of a training.

    means: by part, the mean over its layers at each step and, as floor, of a random model.
    """
    groups: dict[str, list[Similarity]] = defaultdict(list)
    for one in run.similarity:
        groups[one.reference].append(one)
    ordered = sorted(groups.items(), key=lambda group: group[0] != "vlm")
    return [
        {
            "title": "its VLM as published" if reference == "vlm" else f"the stage {reference}",
            "run": run,
            "how": how(run),
            "published": reference == "vlm",
            "lines": _layers(found),
            "means": [_means(part, [one for one in found if one.part == part]) for part in PARTS],
        }
        for reference, found in ordered
    ]


def _layers(found: Iterable[Similarity]) -> list[dict[str, Any]]:
    points: dict[tuple[str, int], list[list[float]]] = defaultdict(list)
    for one in found:
        if one.value == one.value:  # nan: every scene looks the same to this layer
            points[(one.part, one.layer)].append([one.step, one.value])
    depth = {part: sum(p == part for p, _ in points) for part in PARTS}
    return [
        {"part": PARTS.index(part), "name": f"{part} layer {layer} of {depth[part]}",
         "depth": layer / depth[part], "points": line}
        for (part, layer), line in points.items()
    ]  # fmt: skip


def _means(part: str, found: Sequence[Similarity]) -> dict[str, Any]:
    steps: dict[int, list[float]] = defaultdict(list)
    for one in found:
        steps[one.step].append(one.value)
    points = [[step, fmean(values)] for step, values in sorted(steps.items())]
    return {"part": part, "points": points, "floor": fmean(one.floor for one in found)}


def curves(run: Run) -> list[dict[str, Any]]:
    """Each training metric over steps, thinned."""
    names = dict.fromkeys(key for row in run.metrics for key in row if key not in ("step", "time"))
    found = []
    for name in names:
        points = [[row["step"], row[name]] for row in run.metrics if _plots(row.get(name))]
        if len(points) > 1:
            found.append({"title": name.replace("_", " "), "points": thin(points)})
    return found


def _plots(value: object) -> bool:
    """Finite: a diverged loss is a gap in the curve, not the end of its axis."""
    return isinstance(value, int | float) and abs(value) < 1e300


assert set(_COLUMNS) == set(BENCHMARKS) and {table for table, _ in AXES} <= set(TABLES)
