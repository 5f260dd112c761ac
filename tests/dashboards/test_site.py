"""The site: its pages, files and links, of whole, empty and damaged stores, on disk and in S3."""

import csv
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from vla_platform import failures

from dashboards.archive import open_archive
from dashboards.report.entries import table_views
from dashboards.report.figures import how, similarity
from dashboards.report.site import build
from dashboards.runs import read_study
from tests.dashboards.builder import Builder, share
from tests.dashboards.test_report import (
    QWEN,
    simpler,
)
from tests.seaweed import credentials, seaweed
from vlm4vla.capability import parse
from vlm4vla.run import Run


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


def test_why_a_training_failed_is_shown_until_it_is_trained(builder, tmp_path):
    def page():
        built = build(open_archive(builder.url), tmp_path / "site")
        files = ("problems.html", f"runs/{name}.html")
        return built.problems, *((built.folder / file).read_text() for file in files)

    name = builder.train(Run("tiny-kosmos-2", "tabletop"), steps=(0, 250))
    try:
        raise ValueError("the batch is <empty>")
    except ValueError as error:
        failures.record(builder.store, name, "tiny-kosmos-2", error)
    count, problems, run = page()
    assert "ValueError: the batch is &lt;empty&gt;" in problems and "Traceback" not in problems
    assert "Traceback" in run and "test_site.py" in run
    builder.train(Run("tiny-kosmos-2", "tabletop"))
    later, problems, run = page()
    assert later == count - 1
    assert "&lt;empty" not in problems and "Traceback" not in run
    builder.store.put("metrics/other/error.json", b"{")
    assert "metrics/other/error.json does not hold an error" in page()[1]


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
