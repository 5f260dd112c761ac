"""The live app: sweeps at work, a leaderboard, two runs compared episode by episode.

    python -m dashboards.app --store s3://bucket/study [--host 0.0.0.0] [--port 8090]

It reads the store and nothing else, and writes nowhere. NiceGUI rather than Streamlit: a
quarter of its size (130 to 498 MB installed), a page is redrawn in parts instead of running
the whole script again, and it is a plain ASGI application, so that one guard stands before
pages, videos and web sockets alike. On anything but loopback that guard asks for a token:
`VLA_APP_TOKEN`, or one that is made and printed at the start.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from nicegui import app, ui
from starlette.responses import Response

from dashboards.archive import ArchiveError, open_archive
from dashboards.guard import Guard, loopback
from dashboards.live import Activity, Live, Pair, at_work, cells_to_compare, pairs, verdict
from dashboards.report.figures import how
from dashboards.report.scores import RunScore
from dashboards.runs import Study

REFRESH_S = 10.0
KINDS = ["all", "only A", "only B", "both", "neither"]
STATUS_COLUMNS = [
    {"name": name, "label": label, "field": name, "sortable": True, "align": "left"}
    for name, label in (
        *(
            ("run", "run"),
            ("how", "how"),
            ("benchmark", "benchmark"),
            ("value", "best of its cells"),
        ),
        *(("low", "low"), ("high", "high"), ("confirmed", "confirmed"), ("status", "status")),
    )
]
PAIR_COLUMNS = [
    {"name": name, "label": name, "field": name, "sortable": True, "align": "left"}
    for name in ("task", "state", "outcome", "videos")
]


def pages(live: Live) -> None:
    """Define the app's pages and the route of its videos."""

    @ui.page("/")
    def overview() -> None:
        _head(live)
        work, board = ui.column().classes("w-full"), ui.column().classes("w-full")
        with board:
            ui.spinner(size="lg")

        async def fill() -> None:
            await _refresh(live, work)
            scores = (await _look(live))[1]
            board.clear()
            with board:
                _leaderboard(scores)

        ui.timer(0.01, fill, once=True)  # the page is there before a large store is read
        ui.timer(REFRESH_S, lambda: _refresh(live, work))

    @ui.page("/compare")
    def comparison(a: str = "", b: str = "") -> None:
        _head(live)
        place = ui.column().classes("w-full")

        async def fill() -> None:
            study, scores = await _look(live)
            by_id = {one.run.id: one for one in scores}
            with place:
                if a in by_id and b in by_id:
                    _comparison(study.videos, by_id[a], by_id[b])
                else:
                    ui.label("Choose two runs on the leaderboard.").classes("text-lg")
                    ui.link("Back to the runs", "/")

        ui.timer(0.01, fill, once=True)

    @app.get("/video/{key}")
    def video(key: str) -> Response:
        stored = live.look()[0].videos
        if key not in stored:
            return Response(status_code=404)
        return Response(live.archive.get(stored[key]), media_type="video/mp4")


async def _look(live: Live) -> tuple[Study, Sequence[RunScore]]:
    """Reading a store takes seconds: other visitors are served meanwhile."""
    return await asyncio.to_thread(live.look)


def _head(live: Live) -> None:
    ui.dark_mode(None)
    ui.colors(primary="#1f5fbf")
    with ui.header().classes("items-center"):
        ui.link("VLM4VLA", "/").classes("text-white text-lg font-bold no-underline")
        ui.label(live.archive.url).classes("text-sm opacity-80")


async def _refresh(live: Live, place: ui.column) -> None:
    """Draw again what is at work."""
    study = (await _look(live))[0]
    found = at_work(study, time.time())
    place.clear()
    with place:
        ui.label(f"At work: {len(found)}").classes("text-xl")
        with ui.row():
            for one in found:
                _activity(one)
        if not found:
            ui.label("No run gave a sign of life in the last five minutes.").classes("opacity-70")


def _activity(one: Activity) -> None:
    with ui.card().classes("w-72"):
        ui.label(one.run.name).classes("font-bold")
        ui.label(f"{one.run.benchmark} {how(one.run)}").classes("text-sm opacity-70")
        ui.linear_progress(one.share or 0, show_value=False)
        ui.label(f"step {one.step:,} of {one.run.steps or '?'} · {one.episodes:,} episodes")
        ui.label(f"last sign of life {one.idle_s:.0f} s ago").classes("text-sm opacity-70")


def _leaderboard(scores: Sequence[RunScore]) -> None:
    """Every run, with filters; two chosen ones can be compared."""
    rows = sorted(map(_row, scores), key=_best_first)
    ui.label("Leaderboard").classes("text-xl")
    with ui.row().classes("items-center"):
        text = ui.input("filter").props("clearable dense")
        names = sorted({row["benchmark"] for row in rows})
        states = sorted({row["status"] for row in rows})
        chosen, state = (
            ui.select(["all", *choices], value="all", label=label).props("dense").classes("w-36")
            for label, choices in (("benchmark", names), ("status", states))
        )
        button = ui.button("Compare the two chosen runs")
    table = ui.table(
        columns=STATUS_COLUMNS, rows=rows, row_key="id", selection="multiple", pagination=25
    ).classes("w-full")
    table.bind_filter_from(text, "value")

    def narrow() -> None:
        table.rows = [
            row
            for row in rows
            if chosen.value in ("all", row["benchmark"]) and state.value in ("all", row["status"])
        ]
        table.update()

    def compare() -> None:
        if len(table.selected) == 2:
            first, second = (quote(row["id"]) for row in table.selected)
            ui.navigate.to(f"/compare?a={first}&b={second}")
        else:
            ui.notify("Choose two runs by their boxes.")

    chosen.on_value_change(narrow)
    state.on_value_change(narrow)
    button.on_click(compare)


def _best_first(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["benchmark"], row["value"] is None, -(row["value"] or 0)


def _row(one: RunScore) -> dict[str, Any]:
    best, confirmed = one.score.best, one.score.confirmed
    shown = best if one.score.status in ("measured", "reduced") else None
    return {
        "id": one.run.id,
        "run": one.run.name,
        "how": how(one.run),
        "benchmark": one.run.benchmark,
        "value": round(shown.value, 2) if shown else None,
        "low": round(shown.low, 2) if shown else None,
        "high": round(shown.high, 2) if shown else None,
        "confirmed": round(confirmed.value, 2) if shown and confirmed else None,
        "status": one.score.status,
    }


def _comparison(stored: Mapping[str, str], a: RunScore, b: RunScore) -> None:
    """Two selects, the verdict, and the episodes; a click shows both videos (keys: `stored`)."""
    choices = [cells_to_compare(one.run) for one in (a, b)]
    if not all(choices):
        ui.label("One of the two runs has no sound cell with episodes.")
        return
    selects = []
    with ui.row():
        for letter, one, cells in zip("AB", (a, b), choices, strict=True):
            label = f"{letter}: {one.run.name} {how(one.run)}"
            selects.append(
                ui.select(list(cells), value=next(iter(cells)), label=label).classes("w-72")
            )
    said = ui.label().classes("text-lg")
    kind = ui.toggle(KINDS, value="only A")
    films = ui.row()
    table = ui.table(columns=PAIR_COLUMNS, rows=[], row_key="id", pagination=15)
    table.classes("w-full").props("dense")

    def draw() -> None:
        one, other = (cells[s.value] for s, cells in zip(selects, choices, strict=True))
        try:
            found = pairs(one, other, stored)
            said.text = verdict(one, other)
        except ValueError as error:
            found, said.text = [], f"These cannot be compared: {error}."
        shown = [pair for pair in found if kind.value in ("all", pair.kind)]
        shown.sort(key=lambda pair: not (pair.video_a or pair.video_b))  # what can be watched first
        table.rows = [_pair_row(number, pair) for number, pair in enumerate(shown)]
        table.update()
        films.clear()

    def play(event: Any) -> None:
        row = event.args[1]
        films.clear()
        with films:
            for letter, key in (("A", row["a"]), ("B", row["b"])):
                with ui.card():
                    ui.label(f"{letter}: {row['task']} #{row['state']}")
                    if key:
                        ui.video(f"/video/{key}", autoplay=True, loop=True, muted=True)
                    else:
                        ui.label("not filmed").classes("opacity-70")

    for control in (*selects, kind):
        control.on_value_change(draw)
    table.on("rowClick", play)
    draw()


def _pair_row(number: int, pair: Pair) -> dict[str, Any]:
    return {
        "id": number,
        "task": pair.task,
        "state": pair.state,
        "outcome": pair.kind,
        "videos": bool(pair.video_a) + bool(pair.video_b),
        "a": pair.video_a,
        "b": pair.video_b,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="app", description="The live app.")
    parser.add_argument(
        "--store", required=True, help="a folder, or s3://bucket/prefix?endpoint=URL"
    )
    parser.add_argument("--host", default="127.0.0.1", help="anything but loopback needs a token")
    parser.add_argument("--port", type=int, default=8090)
    args = parser.parse_args()
    try:
        live = Live(open_archive(args.store))
    except ArchiveError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    token = ""
    if not loopback(args.host):
        token = os.environ.get("VLA_APP_TOKEN") or secrets.token_urlsafe(24)
        if "VLA_APP_TOKEN" not in os.environ:
            sys.stderr.write(f"open http://{args.host}:{args.port}/?token={token}\n")
    app.add_middleware(Guard, token=token)
    pages(live)
    ui.run(host=args.host, port=args.port, title="VLM4VLA", show=False, reload=False, favicon="🦾")
    return 0


if __name__ == "__main__":
    sys.exit(main())
