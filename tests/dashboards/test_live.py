"""The live app: what it shows, what it compares, and whom it lets in."""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from vla_platform.video import encode_mp4

from dashboards.archive import open_archive
from dashboards.guard import Guard, loopback
from dashboards.live import AT_WORK_S, Live, at_work, cells_to_compare, pairs, verdict
from tests.dashboards.builder import made, share
from tests.dashboards.chromium import BINARY, chromium
from tests.seaweed import free_ports
from vlm4vla.run import Run


def two_runs(builder, **fields):
    """Two backbones on the same ten states; A wins six, B three of them."""
    played = {}
    for backbone, rate in (("tiny-qwen3vl-2b", 0.6), ("tiny-kosmos-2", 0.3)):
        run = builder.train(Run(backbone, "tabletop"))
        cell = builder.cell(run, 1000, 2, "tabletop")
        outcomes = {"reach": [state < 10 * rate for state in range(10)]}
        played[run] = builder.play(cell, outcomes, **fields)
    return played


def test_a_store_is_read_again_when_there_is_something_new(builder):
    run = builder.train(Run("tiny-kosmos-2", "tabletop"))
    cells = [builder.cell(run, 1000, horizon, "tabletop") for horizon in (4, 2)]
    for cell in cells:
        builder.play(cell, {"reach": share(0.5, 4)})
    live = Live(open_archive(builder.url), patience=0)
    before = {cell.id: cell for cell in live.look()[0].cells}
    builder.ledger.commit(made(cells[0], "reach", 4, True))
    after = {cell.id: cell for cell in live.look()[0].cells}
    assert after[cells[0].id].trials == 5
    assert after[cells[1].id] is before[cells[1].id], "what has not changed is not read again"
    patient = Live(open_archive(builder.url), patience=1000)
    assert patient.look()[0] is patient.look()[0]


def test_runs_at_work_gave_a_sign_of_life(builder):
    now = 1e9 + 500
    working = builder.train(Run("tiny-kosmos-2", "tabletop"), steps=(0,), metrics=400)
    builder.train(Run("tiny-qwen3vl-2b", "tabletop"), steps=(0,), metrics=20)
    playing = builder.train(Run("tiny-paligemma-1", "tabletop"), metrics=20)
    cell = builder.cell(playing, 1000, 2, "tabletop")
    builder.play(cell, {"reach": [True]}, compact=False, finished_at=now - 5)
    study = Live(open_archive(builder.url)).look()[0]
    first, second = at_work(study, now)
    assert (first.run.id, first.idle_s, first.share, first.episodes) == (playing, 5, 1.0, 1)
    assert (second.run.id, second.idle_s, second.step) == (working, 100, 400)
    assert at_work(study, now + AT_WORK_S) == []


def test_two_runs_are_compared_on_the_same_states(builder):
    played = two_runs(builder)
    study = Live(open_archive(builder.url)).look()[0]
    a, b = (
        next(iter(cells_to_compare(run).values()))
        for name in played
        for run in study.runs
        if run.id == name
    )
    filmed = {played[next(iter(played))][4].episode.key: "videos/x.mp4"}
    found = pairs(a, b, filmed)
    assert [pair.kind for pair in found] == ["both"] * 3 + ["only A"] * 3 + ["neither"] * 4
    assert [bool(pair.video_a) for pair in found].index(True) == 4
    assert not any(pair.video_b for pair in found)
    said = verdict(a, b)
    assert "McNemar p = 0.25 over" in said
    assert said.startswith("A minus B: +30.0 points") and "10 shared initial states" in said
    assert re.search(r"about \d+ states would show it", said)


def test_repeats_of_a_state_are_no_further_states(builder):
    for backbone, outcome in (("tiny-qwen3vl-2b", (True, True, False)), ("tiny-kosmos-2", False)):
        run = builder.train(Run(backbone, "tabletop"))
        builder.play(builder.cell(run, 1000, 2, "tabletop"), {"reach": [outcome, outcome, False]})
    runs = {run.name: run for run in Live(open_archive(builder.url)).look()[0].runs}
    names = "tiny-qwen3vl-2b", "tiny-kosmos-2"
    a, b = (next(iter(cells_to_compare(runs[name]).values())) for name in names)
    assert len(pairs(a, b, {})) == 3, "an episode has its twin, a repeat has none"
    for said in (verdict(a, b), verdict(a, a)):
        assert "over 3 shared initial states, means of their repeats" in said
    assert verdict(a, b).startswith("A minus B: +44.4 points")
    assert verdict(b, a).startswith("A minus B: -44.4 points")


def test_cells_of_other_environments_are_not_compared(builder):
    run = builder.train(Run("tiny-kosmos-2", "tabletop"))
    for fingerprint in (builder.fingerprint, "f" * 64):
        cell = builder.cell(run, 1000, 2, "tabletop", fingerprint=fingerprint)
        builder.play(cell, {"reach": [True, False]})
    (found,) = Live(open_archive(builder.url)).look()[0].runs
    cells = cells_to_compare(found)
    assert len(cells) == 2 and sum("(" in name for name in cells) == 1
    with pytest.raises(ValueError, match="different environments"):
        pairs(*cells.values(), {})


# Who may come in


def answer(token, kind="http", host="127.0.0.1:8090", query="", cookie=""):
    """The guard's status for one request, or "in" when it let it through."""
    sent = []

    async def inner(scope, receive, send):
        sent.append({"status": "in"})

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "path": "/x", "query_string": query.encode()}
    scope["headers"] = [(b"host", host.encode()), (b"cookie", cookie.encode())]
    asyncio.run(Guard(inner, token)(scope, None, send))
    return sent[0].get("status", sent[0].get("code")), sent[0]


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_nothing_passes_without_the_token(kind):
    refused = 401 if kind == "http" else 4401
    assert answer("abc", kind)[0] == refused
    assert answer("abc", kind, cookie="vla_token=abd")[0] == refused
    assert answer("abc", kind, cookie="vla_token=")[0] == refused
    assert answer("abc", kind, cookie="other=1; vla_token=abc")[0] == "in"


def test_the_token_is_taken_once_and_leaves_the_address():
    status, message = answer("abc", query="token=abc")
    headers = dict(message["headers"])
    assert status == 307 and headers[b"location"] == b"/x"
    assert b"HttpOnly" in headers[b"set-cookie"] and b"SameSite=strict" in headers[b"set-cookie"]
    assert answer("abc", query="token=wrong")[0] == 401


@pytest.mark.parametrize("host", ["127.0.0.1:8090", "localhost:8090", "[::1]:8090", "localhost"])
def test_this_machine_needs_no_token(host):
    assert answer("", host=host)[0] == "in"


@pytest.mark.parametrize("host", ["evil.example:8090", "192.0.2.2:8090", ""])
def test_a_foreign_name_for_this_machine_is_refused(host):
    assert answer("", host=host)[0] == 401


def test_loopback():
    assert loopback("127.0.0.1") and loopback("::1") and loopback("localhost")
    assert not any(map(loopback, ("0.0.0.0", "192.0.2.2", "::", "example.org", "")))


# The running app


@contextlib.contextmanager
def running(url, *more, **environment):
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "dashboards.app", "--store", url, "--port", str(port), *more]
    # NiceGUI serves nothing when it believes that a test drives it from inside.
    mine = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST")}
    process = subprocess.Popen(command, env={**mine, **environment})
    try:
        deadline = time.monotonic() + 180
        while status(f"http://127.0.0.1:{port}/") is None:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def status(url):
    try:
        with urllib.request.urlopen(url, timeout=20) as found:
            return found.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@pytest.mark.full
def test_on_a_network_every_door_wants_the_token(builder):
    two_runs(builder)
    with running(builder.url, "--host", "0.0.0.0", VLA_APP_TOKEN="planted") as address:
        assert (
            status(address) == status(f"{address}/compare") == status(f"{address}/video/x") == 401
        )
        assert status(f"{address}/?token=wrong") == 401
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        assert opener.open(f"{address}/?token=planted", timeout=30).status == 200
        assert opener.open(f"{address}/compare", timeout=30).status == 200


@pytest.mark.full
@pytest.mark.skipif(BINARY is None, reason="needs Debian's chromium: apt-get install chromium")
def test_two_runs_side_by_side_in_a_browser(builder):
    played = two_runs(builder)
    frames = [np.full((64, 64, 3), 6 * n, np.uint8) for n in range(30)]
    for rows in played.values():
        key = rows[4].episode.key
        builder.store.put(f"videos/x/{key}.mp4", encode_mp4(frames))
    a, b = played
    with running(builder.url) as address, chromium() as tab:
        tab.look(1280, 900)
        tab.open(f"{address}/")
        tab.wait("document.querySelectorAll('tbody tr').length == 2")
        top = "document.querySelector('tbody tr').innerText"
        assert "tiny-qwen3vl-2b" in tab.value(top), "the best on top"
        tab.open(f"{address}/compare?a={a}&b={b}")
        tab.wait("document.body.textContent.includes('A minus B: +30.0 points')")
        rows = "[...document.querySelectorAll('tbody tr')].map(r => r.innerText)"
        tab.wait(f"{rows}.length == 3 && {rows}.every(text => text.includes('only A'))")
        tab.value("document.querySelectorAll('tbody tr')[0].click()")  # the filmed one
        tab.wait("document.querySelectorAll('video').length == 2")
        tab.wait("[...document.querySelectorAll('video')].every(v => v.currentTime > 0.05)")
        assert tab.wrong == []
        assert all(url.startswith((address, "data:", "blob:")) for url in tab.asked)
