"""Writes the site: pages from templates, tables as files, videos copied from the store."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from dashboards.archive import Archive
from dashboards.report import exports, figures, pages
from dashboards.report.entries import TableView, table_views
from dashboards.report.scores import RunScore, run_score
from dashboards.runs import Run, Study, read_study
from vlm4vla.capability import Score, shipped

ASSETS = Path(__file__).with_name("assets")


@dataclass(frozen=True)
class Built:
    """What a build read and wrote, and how long it took. seconds: by stage."""

    folder: Path
    runs: int
    cells: int
    episodes: int
    problems: int
    measured: int
    seconds: dict[str, float]


def build(
    archive: Archive, folder: Path, extra: Sequence[Score] = (), videos: bool = True
) -> Built:
    """Write the whole site to a folder (made when missing); files of the same name are replaced.

    extra: capability scores beside those shipped. videos: whether to copy them.
    """
    began = time.monotonic()
    study = read_study(archive)
    read = time.monotonic()
    scores = [run_score(run) for run in study.runs]
    views = table_views(scores)
    site = Site(archive, folder, study, scores, views, [*shipped(), *extra])
    site.write(videos)
    done = time.monotonic()
    return Built(
        folder,
        len(study.runs),
        len(study.cells),
        sum(cell.trials for cell in study.cells),
        site.count,
        sum(line.score.status == "measured" for v in views for line in v.lines if not line.part),
        {"read": read - began, "write": done - read},
    )


class Site:
    """One build of the report."""

    def __init__(
        self,
        archive: Archive,
        folder: Path,
        study: Study,
        scores: Sequence[RunScore],
        views: Sequence[TableView],
        capability: Sequence[Score],
    ) -> None:
        self.archive, self.folder, self.study = archive, folder, study
        self.scores, self.views, self.capability = scores, views, capability
        self.parts = pages.problems(study, scores, views)
        self.count = sum(len(part["lines"]) for part in self.parts if part["counts"])
        self.templates = _environment()
        self.built = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())

    def write(self, videos: bool) -> None:
        for name in ("assets", "runs", "tables", "videos"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        shutil.copytree(ASSETS, self.folder / "assets", dirs_exist_ok=True)
        self._overview()
        self._files()
        for one in self.scores:
            self._run(one, videos)

    def _overview(self) -> None:
        tiles, board = pages.index_tiles(self.study), pages.board(self.scores)
        values = {"seeds": pages.seeds(self.scores), "strangers": self.study.strangers}
        values["stages"] = self.study.stages
        self._page("index", "Runs", tiles=tiles, board=board, **values)
        self._page("tables", "Tables", known={run.id for run in self.study.runs})
        self._page(
            "figures",
            "Figures",
            radar=figures.radar(self.views),
            scatter=figures.scatter(self.views, self.capability),
            boxes=figures.boxes(self.scores),
            similar=self._similar(),
            capability=self.capability,
        )
        self._page("problems", "Problems", parts=self.parts)

    def _similar(self) -> list[dict[str, Any]]:
        """Every run beside its own backbone; other references stand on the runs' pages."""
        return [
            plot for run in self.study.runs for plot in figures.similarity(run) if plot["published"]
        ]

    def _files(self) -> None:
        for view in self.views:
            if view.lines:
                for ending, text in (
                    ("csv", exports.as_csv(view)),
                    ("md", exports.as_markdown(view)),
                    ("tex", exports.as_latex(view)),
                ):
                    (self.folder / "tables" / f"{view.name}.{ending}").write_text(text)
        (self.folder / "cells.csv").write_text(exports.cells_csv(self.scores, self.study.strangers))
        lines = [(part["title"], *line) for part in self.parts for line in part["lines"]]
        wide = max(map(len, lines), default=1)
        head = ("kind", *(f"field{n}" for n in range(1, wide)))
        (self.folder / "problems.csv").write_text(exports.write_csv(head, lines))

    def _run(self, one: RunScore, copy: bool) -> None:
        run = one.run
        chosen = pages.videos(run, self.study.videos) if copy else []
        for video in chosen:
            target = self.folder / "videos" / video["src"].rpartition("/")[2]
            if not target.exists():
                target.write_bytes(self.archive.get(video["key"]))
        self._write(
            f"runs/{run.id}.html",
            "run.html",
            title=f"{run.name} on {run.benchmark}",
            root="../",
            here="index",
            run=run,
            one=one,
            decimals=pages.decimals(run),
            tiles=pages.run_tiles(run),
            grids=pages.grids(run),
            tasks=pages.tasks(run, one),
            curves=figures.curves(run),
            similar=figures.similarity(run),
            videos=chosen,
            fingerprints=_fingerprints(run, self.study),
            problems=_problems(run),
        )

    def _page(self, name: str, title: str, **values: Any) -> None:
        self._write(f"{name}.html", f"{name}.html", title=title, root="", here=name, **values)

    def _write(self, path: str, template: str, **values: Any) -> None:
        values |= {"views": self.views, "store": self.study.url, "built": self.built}
        values["count_problems"] = self.count
        text = self.templates.get_template(template).render(**values)
        (self.folder / path).write_text(text, encoding="utf-8")


def _fingerprints(run: Run, study: Study) -> dict[str, Any]:
    names = dict.fromkeys(str(cell.fields["fingerprint"]) for cell in run.cells)
    return {name: study.fingerprints.get(name, {"text": "not in the store"}) for name in names}


def _problems(run: Run) -> list[str]:
    found = [f"{p.key}: {p.reason}" for p in run.problems]
    return found + [f"{p.key}: {p.reason}" for cell in run.cells for p in cell.problems]


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("dashboards.report"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": lambda value, decimals: f"{value:.{decimals}f}",
        "signed": lambda value, decimals: f"{value:+.{decimals}f}",
        "plain": _plain,
        "span": _span,
    }
    return made


def _plain(value: object) -> str:
    if value is None or value == []:
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _span(view: TableView) -> float:
    """The largest end of a difference in the table: the reach of its little pictures."""
    gaps = [line.gap for line in view.lines if line.gap]
    gaps += [line.effect.difference for line in view.lines if line.effect]
    return max((max(abs(gap.low), abs(gap.high)) for gap in gaps), default=1.0) or 1.0
