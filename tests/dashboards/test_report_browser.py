"""The site in a real browser: phone and desk, light and dark, plots, videos, nothing foreign."""

import numpy as np
import pytest
from scipy import stats
from vla_platform.video import encode_mp4

from dashboards.archive import open_archive
from dashboards.report.site import build
from tests.dashboards.builder import Builder, share
from tests.dashboards.chromium import BINARY, chromium
from vlm4vla.capability import Score
from vlm4vla.run import Run

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(BINARY is None, reason="needs Debian's chromium: apt-get install chromium"),
]
SCREENS = {"desk": (1280, 900), "phone": (390, 844)}
PAGES = ("index.html", "tables.html", "figures.html", "problems.html")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    builder = Builder(str(folder / "store"))
    for backbone, rate in (("tiny-kosmos-2", 0.2), ("tiny-qwen3vl-2b", 0.7)):
        run = builder.train(Run(backbone, "tabletop"), metrics=900)
        for horizon in (4, 2, 1):
            cell = builder.cell(run, 1000, horizon, "tabletop")
            rows = builder.play(cell, {"reach": share(rate, 50), "push": share(rate / 2, 50)})
    for step, value in ((0, 1.0), (500, 0.8), (1000, 0.7)):
        builder.compare(run, "vlm", step, value - 0.1)
    frames = [np.full((96, 96, 3), 5 * n, np.uint8) for n in range(40)]
    for row in rows[:4]:
        builder.store.put(f"videos/{cell.id}/{row.episode.key}.mp4", encode_mp4(frames))
    unfinished = builder.cell(run, 1000, 3, "tabletop")
    builder.play(unfinished, {"reach": share(0.5, 4)}, compact=False)
    scores = [
        Score(name, "MMMU", 40.0 + 3 * n, "test")
        for n, name in enumerate(("qwen2.5vl-3b", "qwen2.5vl-7b", "qwen3vl-2b", "qwen3vl-4b"))
    ]
    built = build(open_archive(builder.url), folder / "out", scores)
    return built.folder, run


@pytest.fixture(scope="module")
def tab():
    with chromium() as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_every_page_fits_and_is_silent(site, tab, screen, dark):
    folder, run = site
    tab.wrong.clear()
    tab.asked.clear()
    tab.look(*SCREENS[screen], dark)
    for page in (*PAGES, f"runs/{run}.html"):
        tab.open(f"file://{folder}/{page}")
        assert tab.value("document.documentElement.scrollWidth <= innerWidth"), page
        shade = tab.value("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] | 0")
        assert (shade < 90) is dark, page
        plots = "document.querySelectorAll('figure[data-plot]').length"
        drawn = "document.querySelectorAll('figure[data-plot]:has(svg)').length"
        assert tab.value(plots) == tab.value(drawn), page
    assert tab.wrong == []
    assert all(url.startswith(("file:", "data:")) for url in tab.asked)


def test_plots_answer_to_the_hand(site, tab):
    folder, _ = site
    tab.look(*SCREENS["desk"])
    tab.open(f"file://{folder}/figures.html")
    assert tab.value("document.querySelectorAll('[data-plot=radar] circle').length") > 90
    tab.value("document.querySelector('[data-plot=radar] .legend button').click()")
    assert tab.value("document.querySelectorAll('[data-plot=radar] circle').length") <= 97
    text = "document.querySelector('[data-plot=scatter] .legend').textContent"
    before = tab.value(text)
    assert "r = " in before and "too few" not in before
    tab.value(
        "(() => { const i = document.querySelector('input[type=range]');"
        " i.value = 0.3; i.dispatchEvent(new Event('input')); })()"
    )
    assert tab.value(text) != before
    layer = "document.querySelector('[data-plot=similarity] circle')"
    tab.value(f"{layer}.dispatchEvent(new Event('pointerenter'))")
    assert "layer 1 of 2, step 0: 1.000" in tab.value("document.querySelector('.tip').textContent")
    tab.value(f"{layer}.dispatchEvent(new Event('pointerleave'))")
    mark = "document.querySelector('[data-plot=scatter] circle')"
    tab.value(f"{mark}.dispatchEvent(new Event('pointerenter'))")
    assert "of 18 benchmarks" in tab.value("document.querySelector('.tip').textContent")


def test_figure_3s_r_is_scipys(site, tab):
    """The browser computes its fits again when the slider moves."""
    folder, _ = site
    tab.open(f"file://{folder}/figures.html")
    rng = np.random.default_rng(0)
    points = rng.normal(size=(9, 2)).tolist()
    theirs = tab.value(f"fit({points})")
    x, y = zip(*points, strict=True)
    r, line = stats.pearsonr(x, y), stats.linregress(x, y)
    expected = [r.statistic, *r.confidence_interval(), line.slope, line.intercept]
    found = [theirs[name] for name in ("r", "low", "high", "slope", "at")]
    assert found == pytest.approx(expected, abs=1e-5)


def test_runs_are_sorted_and_filtered(site, tab):
    folder, _ = site
    tab.open(f"file://{folder}/index.html")
    first = "document.querySelector('#board tbody tr:not([hidden]) a').textContent"
    heading = "document.querySelectorAll('#board th')[2].click()"
    tab.value(heading)
    top = tab.value(first)
    tab.value(heading)
    assert tab.value(first) != top
    tab.value(
        "(() => { const i = document.querySelector('[data-filter]');"
        " i.value = 'kosmos'; i.dispatchEvent(new Event('input')); })()"
    )
    assert tab.value(first) == "tiny-kosmos-2"
    assert tab.value("document.querySelectorAll('#board tbody tr:not([hidden])').length") == 1


def test_videos_play(site, tab):
    folder, run = site
    tab.open(f"file://{folder}/runs/{run}.html")
    assert tab.value("document.querySelectorAll('video').length") == 4
    for number in range(4):
        video = f"document.querySelectorAll('video')[{number}]"
        tab.value(f"{video}.play()")
        tab.wait(f"{video}.currentTime > 0.05")
        assert tab.value(f"[{video}.videoWidth, {video}.error]") == [96, None]
