"""The site: what it says of whole, half and broken studies, on disk and in S3."""

import csv
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from dashboards.archive import open_archive
from dashboards.report.entries import stand_in, table_views
from dashboards.report.figures import boxes, how, radar, scatter, similarity
from dashboards.report.pages import seeds
from dashboards.report.scores import run_score
from dashboards.report.site import build
from dashboards.runs import read_study
from envs.benchmarks import benchmark
from tests.dashboards.builder import Builder, share
from tests.seaweed import credentials, seaweed
from vlm4vla.capability import Score, parse
from vlm4vla.run import Run
from vlm4vla.study import TABLES

SIMPLER, CALVIN, TABLETOP = (benchmark(name) for name in ("simpler", "calvin", "tabletop"))
QWEN = Run("qwen2.5vl-3b", "simpler")
FROZEN = Run("qwen2.5vl-3b", "simpler", freeze=("vision",))


@pytest.fixture
def builder(tmp_path):
    return Builder(str(tmp_path / "store"))


def simpler(builder, run, rate, confirm=None, steps=SIMPLER.recipe.checkpoints):
    """A whole evaluation on SimplerEnv; the last checkpoint is the best."""
    name = builder.train(run, steps=(0, *steps))
    for step in steps:
        best = step == steps[-1]
        for horizon in SIMPLER.horizons:
            states = share(rate if best and horizon == 4 else rate / 2, 24)
            if best and horizon == 4 and confirm is not None:
                states = states + share(confirm, 24)
            cell = builder.cell(name, step, horizon, "simpler")
            builder.play(cell, dict.fromkeys(SIMPLER.tasks, states))
    return name


def scores_of(builder):
    return [run_score(run) for run in read_study(open_archive(builder.url)).runs]


def line_of(scores, table, row, column):
    (view,) = [view for view in table_views(scores) if view.name == table]
    return next(x for x in view.lines if (x.row, x.column) == (row, column))


def test_a_measured_number_stands_beside_the_papers(builder):
    name = simpler(builder, QWEN, 0.75, confirm=0.5)
    line = line_of(scores_of(builder), "table2", "qwen2.5vl-3b", "simpler")
    assert (line.run, line.score.status, line.score.note) == (name, "measured", "")
    assert line.score.best.value == 75.0 and line.score.confirmed.value == 50.0
    assert line.gap.value == pytest.approx(75 - 48) and line.beyond and line.gap.low > 0
    part = line_of(scores_of(builder), "table2", "qwen2.5vl-3b", "eggplant")
    assert part.score.best.value == 75.0 and part.part and part.score.trials == 24
    same = line_of(scores_of(builder), "table3", "qwen2.5vl-3b", "simpler")
    assert same.run == name, "one training in whichever tables it stands"


def test_a_difference_within_noise_is_not_marked(builder):
    simpler(builder, QWEN, 0.55)
    line = line_of(scores_of(builder), "table2", "qwen2.5vl-3b", "simpler")
    assert line.gap.low < 0 < line.gap.high and line.beyond is False


def test_effects_are_measured_on_the_same_states(builder):
    simpler(builder, QWEN, 0.75)
    simpler(builder, FROZEN, 0.25)
    line = line_of(scores_of(builder), "table3", "qwen2.5vl-3b+freeze_vision", "simpler")
    assert line.printed_effect == -24.05 and line.effect.pairs == 96
    assert line.effect.difference.value == pytest.approx(-50) and line.effect_beyond


def test_calvins_rates_are_the_winners(builder):
    name = builder.train(Run("kosmos-2", "calvin"))
    for step in CALVIN.recipe.checkpoints:
        for horizon in CALVIN.horizons:
            chains = [n % 6 for n in range(1000)]
            builder.play(builder.cell(name, step, horizon, "calvin"), {"sequence": chains})
    scores = scores_of(builder)
    length = line_of(scores, "table1", "kosmos-2", "avg_len")
    assert length.score.status == "measured" and length.score.best.value == pytest.approx(2.496)
    first = line_of(scores, "table1", "kosmos-2", "task1")
    assert first.score.best.value == pytest.approx(0.833, abs=1e-3) and first.gap.value < 0


def test_half_a_study_has_no_result(builder):
    name = builder.train(QWEN, steps=(0, 5000, 10000))
    cell = builder.cell(name, 5000, 4, "simpler")
    builder.play(cell, dict.fromkeys(SIMPLER.tasks, share(0.5, 6)), compact=False)
    (one,) = scores_of(builder)
    assert one.score.status == "unfinished" and one.score.best is None
    assert one.score.note == "24 episodes so far"
    assert line_of([one], "table2", "qwen2.5vl-3b", "simpler").gap is None


def test_a_training_that_is_not_over_is_unfinished(builder):
    simpler(builder, QWEN, 0.5, steps=SIMPLER.recipe.checkpoints[:3])
    (one,) = scores_of(builder)
    assert (one.score.status, one.score.note) == ("unfinished", "trained 15000 of 50000 steps")
    assert line_of([one], "table2", "qwen2.5vl-3b", "simpler").gap is None


def test_one_broken_row_takes_the_number_away(builder):
    name = simpler(builder, QWEN, 0.75)
    cell = builder.cell(name, 50000, 4, "simpler")
    builder.store.put(f"cells/{cell.id}/episodes/{'0' * 64}.parquet", b"half a ro")
    (one,) = scores_of(builder)
    assert (one.score.status, one.score.best) == ("broken", None)
    assert line_of([one], "table2", "qwen2.5vl-3b", "simpler").gap is None


def test_other_conditions_are_never_pooled(builder):
    name = builder.train(Run("tiny-kosmos-2", "tabletop"))
    for fingerprint, rate in ((builder.fingerprint, 1.0), ("f" * 64, 0.0)):
        cell = builder.cell(name, 1000, 2, "tabletop", fingerprint=fingerprint)
        states = share(rate, 20 if rate else 10)
        builder.play(cell, dict.fromkeys(TABLETOP.tasks, states))
    (one,) = scores_of(builder)
    assert one.score.best.value == 100.0 and one.score.trials == 60 and one.others == 1
    assert "1 other condition, kept apart" in one.score.note


def test_training_seeds_make_a_wider_interval(builder):
    for seed, rate in enumerate((0.3, 0.5, 0.7)):
        name = builder.train(Run("tiny-kosmos-2", "tabletop", seed=seed))
        builder.play(builder.cell(name, 1000, 2, "tabletop"), {"reach": share(rate, 100)})
    alone = builder.train(Run("tiny-qwen3vl-2b", "tabletop"))
    builder.play(builder.cell(alone, 1000, 2, "tabletop"), {"reach": share(0.5, 100)})
    elsewhere = builder.train(Run("tiny-kosmos-2", "tabletop", seed=3))
    cell = builder.cell(elsewhere, 1000, 2, "tabletop", fingerprint="e" * 64)
    builder.play(cell, {"reach": share(1.0, 100)})
    scores = scores_of(builder)
    (group,) = seeds(scores)
    assert (group["seeds"], group["how"]) == (3, "") and group["mean"].value == pytest.approx(50)
    single = next(one.score.best for one in scores if one.score.best.value == 50)
    assert group["mean"].high - group["mean"].low > 1.5 * (single.high - single.low)


def test_training_seeds_of_chains_are_in_the_papers_unit(builder):
    for seed, done in enumerate((2, 4)):
        name = builder.train(Run("kosmos-2", "calvin", seed=seed))
        for step in CALVIN.recipe.checkpoints:
            for horizon in CALVIN.horizons:
                cell = builder.cell(name, step, horizon, "calvin")
                builder.play(cell, {"sequence": [done] * 20})
    (group,) = seeds(scores_of(builder))
    assert (group["top"], group["decimals"]) == (5, 3)
    assert group["mean"] == pytest.approx((3, 2, 4))


def test_controls_stand_apart(builder):
    name = builder.train(Run("tiny-kosmos-2", "tabletop"))
    plays = ((1000, "own", 0.8), (0, "own", 0.1), (1000, "wrong_word", 0.2))
    for step, mode, rate in plays:
        cell = builder.cell(name, step, 2, "tabletop", instruction_mode=mode)
        builder.play(cell, {"reach": share(rate, 100)})
    (one,) = scores_of(builder)
    assert one.score.status == "reduced" and one.score.best.value == 80.0
    assert (one.untrained.value, one.wrong_word.value) == (10.0, 20.0)


def test_tiny_models_stand_in_and_are_not_compared(builder):
    tiny = Run("tiny-qwen2.5vl-3b", "tabletop", freeze=("vision",))
    name = builder.train(tiny)
    builder.play(builder.cell(name, 1000, 2, "tabletop"), {"reach": share(0.5, 100)})
    scores = scores_of(builder)
    assert stand_in(FROZEN, scores).run.id == name and stand_in(QWEN, scores) is None
    line = line_of(scores, "table3", "qwen2.5vl-3b+freeze_vision", "simpler")
    assert line.score.status == "missing" and line.gap is None and line.stand_in.run.id == name
    assert stand_in(Run("qwen2.5vl-3b", "calvin", freeze=("vision",), lr=1e-4), scores) is None


def test_every_number_of_the_paper_has_its_line():
    views = {view.name: view for view in table_views([])}
    assert set(TABLES) <= set(views) and len(views) == 11
    for name, table in TABLES.items():
        places = {(line.row, line.column) for line in views[name].lines}
        assert {(e.row, e.column) for e in table.entries()} <= places
        assert all(line.score.status == "missing" for line in views[name].lines)
    assert len(views["table9"].findings) == 1 and not views["table9"].lines


def test_figures(builder):
    simpler(builder, QWEN, 0.75)
    scores = scores_of(builder)
    views = table_views(scores)
    shown = radar(views)
    assert len(shown["axes"]) == 12 and len(shown["series"]) == 10
    assert shown["series"][1]["name"] == "qwen2.5vl-3b (ours)"
    extra = [Score("qwen2.5vl-3b", "MMMU", 53.1, "test")]
    points = {s["name"]: s["points"] for s in scatter(views, extra)["series"]}
    (point,) = points["SimplerEnv"]
    assert (point["x"], point["y"], point["ours"]) == (53.1, 75.0, True)
    assert not points["CALVIN"][0]["ours"] and points["CALVIN"][0]["y"] == pytest.approx(77.12)
    (group,) = boxes(scores)["groups"]
    assert group["title"] == "simpler" and len(group["boxes"][0]["values"]) == 30


# The site


class Page(HTMLParser):
    """Links, sources and text of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.sources, self.words = [], [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif "src" in found or tag == "link":
            self.sources.append(found.get("src") or found["href"])

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A site of a small study with everything in it, and its store."""
    folder = tmp_path_factory.mktemp("whole")
    builder = Builder(str(folder / "store"))
    simpler(builder, QWEN, 0.75, confirm=0.5)
    name = builder.train(Run("tiny-kosmos-2", "tabletop"))
    cell = builder.cell(name, 1000, 2, "tabletop")
    rows = builder.play(cell, {"reach": share(0.5, 20)}, compact=False)
    for row in rows[:3]:
        builder.store.put(f"videos/{cell.id}/{row.episode.key}.mp4", b"not really a film")
    builder.ledger.record_error(cell.episode("push", 0, 0, ""), "died", "a <b>segfault</b>")
    built = build(open_archive(builder.url), folder / "site")
    return builder, built, name


def test_pages_hang_together_and_ask_nobody(whole):
    _, built, _ = whole
    pages = {path: Page(path) for path in built.folder.rglob("*.html")}
    assert len(pages) == 4 + built.runs
    for path, page in pages.items():
        for source in page.sources:
            assert source == "data:," or (path.parent / source).resolve().is_file(), source
        for link in page.links:
            target, _, place = link.partition("#")
            assert not re.match(r"\w+:", target), link
            found = (path.parent / target).resolve() if target else path
            assert found.is_file() and (not place or f'id="{place}"' in found.read_text()), link
    for asset in (built.folder / "assets").iterdir():
        text = asset.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http" not in text and "@import" not in text


def test_a_run_page_shows_everything(whole):
    builder, built, name = whole
    page = Page(built.folder / "runs" / f"{name}.html")
    for said in ("tiny-kosmos-2", "unfinished", "own instruction", "image_px", "loss"):
        assert said in page.text
    assert builder.fingerprint[:12] in page.text and "samples per s" in page.text
    films = [source for source in page.sources if source.endswith(".mp4")]
    assert len(films) == 3 and "failure" in page.text and "success" in page.text
    assert (built.folder / "runs" / films[0]).resolve().read_bytes() == b"not really a film"


def test_the_page_of_problems_escapes_what_it_shows(whole):
    _, built, _ = whole
    text = (built.folder / "problems.html").read_text()
    assert "a &lt;b&gt;segfault&lt;/b&gt;" in text and "<b>segfault" not in text
    assert built.problems == 3  # the failed episode, its cell, its run without a result
    assert "3 things missing, unfinished or broken" in Page(built.folder / "index.html").text


def test_tables_as_files(whole):
    _, built, _ = whole
    with open(built.folder / "tables" / "table2.csv") as file:
        rows = {(r["row"], r["column"]): r for r in csv.DictReader(file)}
    mine = rows["qwen2.5vl-3b", "simpler"]
    assert float(mine["ours_value"]) == 75.0 and mine["larger_than_noise"] == "True"
    assert rows["kosmos-2", "simpler"]["ours_value"] == ""
    markdown = (built.folder / "tables" / "table2.md").read_text().splitlines()
    assert len({line.count("|") for line in markdown[2:]}) == 1
    latex = (built.folder / "tables" / "table3.tex").read_text()
    assert (
        r"qwen2.5vl-3b+freeze\_vision" in latex
        and latex.count(r"\\") == len(table_views([])[2].lines) + 1
    )
    with open(built.folder / "cells.csv") as file:
        cells = list(csv.DictReader(file))
    assert sum(int(row["trials"]) for row in cells) == built.episodes


def test_s3_gives_the_same_site(whole, tmp_path, monkeypatch):
    builder, built, _ = whole
    for name, value in credentials().items():
        monkeypatch.setenv(name, value)
    with seaweed(tmp_path / "weed") as server:
        copy = Builder(server.url("study"))
        for key in builder.store.list():
            copy.store.put(key, builder.store.get(key))
        again = build(open_archive(server.url("study")), tmp_path / "site")
    assert (again.runs, again.episodes, again.problems) == (
        *(built.runs, built.episodes, built.problems),
    )
    ours, theirs = (
        re.sub(r"Read from.*? UTC", "", (site.folder / "index.html").read_text())
        for site in (built, again)
    )
    assert ours == theirs


def test_an_empty_store_says_so(tmp_path):
    (tmp_path / "store").mkdir()
    built = build(open_archive(str(tmp_path / "store")), tmp_path / "site")
    assert (built.runs, built.problems) == (0, 0)
    assert "Nothing was trained in this store yet" in Page(tmp_path / "site/index.html").text


def test_the_job(whole, tmp_path):
    builder, built, _ = whole
    command = [sys.executable, "jobs/report.py", "--store", builder.url]
    command += ["--out", str(tmp_path / "site"), "--json", str(tmp_path / "built.json")]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "2 runs, 31 cells" in out.stdout
    assert json.loads((tmp_path / "built.json").read_text())["episodes"] == built.episodes
    wrong = [*command[:3], str(tmp_path / "nowhere"), *command[4:6]]
    failed = subprocess.run(wrong, capture_output=True, text=True)
    assert failed.returncode == 2 and failed.stderr.startswith("error: there is no store at")


def test_the_job_audits_the_paper(tmp_path):
    command = [sys.executable, "jobs/report.py", "--audit-paper", "--json", str(tmp_path / "a")]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads((tmp_path / "a").read_text())
    assert len(found) == 29 and "29" in out.stdout
    assert all(set(one) == {"table", "row", "rule", "detail"} for one in found)
    assert {
        "table": "table1_calvin",
        "row": "pi0*",
        "rule": "chain_sum",
        "detail": "the rates add up to 3.609, avg_len says 3.509",
    } in found


def test_the_job_imports_scores_that_the_report_takes(tmp_path):
    (tmp_path / "Q_MMStar_acc.csv").write_text("split,Overall\nnone,0.559\n")
    (tmp_path / "Q_MMVet_score.csv").write_text("a,b\n1,2\n")
    command = [sys.executable, "jobs/report.py", "--import-scores", "qwen3vl-2b"]
    command += [str(tmp_path / name) for name in ("Q_MMStar_acc.csv", "Q_MMVet_score.csv")]
    command += ["--json", str(tmp_path / "scores.json")]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "left out: Q_MMVet_score.csv" in out.stdout
    (score,) = parse((tmp_path / "scores.json").read_text())
    assert (score.backbone, score.benchmark, score.score) == ("qwen3vl-2b", "MMStar", 55.9)


def test_reading_needs_neither_torch_nor_ray(whole, tmp_path):
    code = f"""
import sys
from pathlib import Path
from dashboards.archive import open_archive
from dashboards.report.site import build
build(open_archive({whole[0].url!r}), Path({str(tmp_path)!r}))
print({{name.split(".")[0] for name in sys.modules}} & {{"torch", "ray", "transformers"}})
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_figure_5_is_measured_layer_by_layer(builder, tmp_path):
    run = builder.train(Run("tiny-kosmos-2", "tabletop", init="scratch"))
    for step, value in ((0, 0.3), (500, 0.7), (1000, 0.5)):
        builder.compare(run, "vlm", step, value)
    builder.compare(run, "tiny-robopoint-1", 1000, 0.2)
    (found,) = read_study(open_archive(builder.url)).runs
    mine, stage = similarity(found)
    assert (mine["title"], stage["title"]) == ("its VLM as published", "the stage tiny-robopoint-1")
    assert [len(line["points"]) for line in mine["lines"]] == [3] * 4
    vision, language = mine["means"]
    assert vision["points"] == [[0, 0.3], [500, 0.7], [1000, 0.5]]
    assert vision["floor"] == pytest.approx(0.4)
    assert language["points"][1][1] == pytest.approx(0.8)
    build(open_archive(builder.url), tmp_path / "site")
    page = (tmp_path / "site" / "figures.html").read_text()
    assert "0.700" in page and "init scratch on tabletop" in page and "robopoint" not in page
    assert "tiny-robopoint-1" in (tmp_path / "site" / "runs" / f"{run}.html").read_text()


def test_damaged_similarities_are_a_problem_and_not_a_number(builder):
    run = builder.train(Run("tiny-kosmos-2", "tabletop"))
    builder.compare(run, "vlm", 0, 0.3)
    builder.store.put(f"similarity/{run}/vlm/step-00000500.parquet", b"?")
    (found,) = read_study(open_archive(builder.url)).runs
    assert len(found.similarity) == 4
    assert "does not hold similarities" in found.problems[0].reason


def test_auxiliary_stages_are_no_runs(builder, tmp_path):
    told = {"name": "tiny-robopoint", "backbone": "tiny-qwen2.5vl-3b", "steps": 400}
    scores = {
        "before": {"point": {"score": 0.0}},
        "after": {"point": {"score": 0.25, "asked": 256}},
    }
    finished, going = ("policies/tiny-robopoint-1", "policies/tiny-robopoint-2")
    for folder in (finished, going):
        key = f"{folder}/step-00000400/policy.json"
        builder.store.put(key, json.dumps({"stage": told}).encode())
    record = json.dumps({"stage": told, "left_out": ["one"], **scores}).encode()
    builder.store.put(f"{finished}/stage.json", record)
    builder.store.put("policies/tiny-robopoint-3/stage.json", b"{")
    study = read_study(open_archive(builder.url))
    assert study.runs == ()
    assert [stage.status for stage in study.stages] == ["complete", "unfinished", "broken"]
    assert study.stages[0].answers[0].after == 0.25 and study.stages[0].left_out == 1
    assert build(open_archive(builder.url), tmp_path / "site").problems == 2
    page = (tmp_path / "site" / "index.html").read_text()
    assert "25.0" in page and "1 questions left out" in page and "not scored yet" in page


def test_runs_say_how_they_differ_from_the_recipe(builder):
    for fields in ({}, {"steps": 250, "lr": 1e-3}):
        builder.train(Run("tiny-kosmos-2", "tabletop", **fields))
    found = {how(run) for run in read_study(open_archive(builder.url)).runs}
    assert found == {"", "steps 250, lr 0.001"}
