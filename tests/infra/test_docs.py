"""What the documentation tells people to do, done: on a copy of the tree, command by command."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ray import tune
from vla_platform import tuning
from vla_platform.cluster import CLUSTERS
from vla_platform.contest import Rules
from vla_platform.trained import Setting

from envs.benchmarks import benchmark
from tests import printed
from tests.dashboards.builder import Builder, share
from vlm4vla.run import Run

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.M | re.S)
TOP = ("README.md", "SECURITY.md", "CONTRIBUTING.md")
PAGES = (*(ROOT / name for name in TOP), *sorted((ROOT / "docs").glob("*.md")))

JOBS = sorted((ROOT / "jobs").glob("*.py"))


def section(title):
    text = (ROOT / "docs" / "adding.md").read_text()
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.M | re.S).group(1)


def change(path, diff):
    """Apply a diff whose lines are neighbours in the file, and occur there once."""
    lines = diff.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if line[0] in " -")
    new = "".join(line[1:] for line in lines if line[0] in " +")
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name} no longer has once:\n{old}"
    path.write_text(text.replace(old, new))


@pytest.fixture
def tree(tmp_path):
    for name in ("vlm4vla", "envs", "platform", "jobs", "infra", "dashboards"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def follow(tree, title, **variables):
    """Make a section's changes and run its commands; their output, in order."""
    said = []
    for kind, path, text in BLOCK.findall(section(title)):
        if kind == "diff":
            change(tree / path, text)
        elif kind in ("python", "text"):
            assert not (tree / path).exists()
            (tree / path).write_text(text)
        for line in text.splitlines() if kind == "sh" else ():
            out = run(tree, line, variables)
            assert out.returncode == 0, f"{line}\n{out.stdout[-2000:]}{out.stderr[-2000:]}"
            said.append(out.stdout)
    return said


def run(tree, line, variables):
    path = os.pathsep.join([str(tree), str(tree / "platform")])
    environment = {**os.environ, "PYTHONPATH": path, "VLA_STORE": str(tree / "store"), **variables}
    return subprocess.run(
        [sys.executable, *shlex.split(line)[1:]],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.full
def test_adding_a_backbone(tree):
    table, plan, _ = follow(tree, "A backbone")
    assert "qwen3vl-32b" in table
    assert "qwen3vl-32b" in plan
    rows = json.loads((tree / "plan.json").read_text())["rows"]
    added = [row for row in rows if row["row"] == "qwen3vl-32b"]
    assert [row["printed"] for row in added] == [None] * 3, "CALVIN, SimplerEnv, LIBERO-10"
    assert_reported(tree, Run("qwen3vl-32b", "libero_10"))
    code = """
from vlm4vla.policies import build_policy
from vlm4vla.run import Run
policy = build_policy(Run("tiny-qwen3vl-32b", "tabletop", init="scratch"), 4)
print(sum(p.numel() for p in policy.parameters()))
"""
    out = run(tree, f"python -c {shlex.quote(code)}", {})
    assert int(out.stdout) > 100_000, out.stderr


@pytest.mark.full
def test_the_suite_holds_for_what_is_added(tree):
    """The paper's numbers are tested for what the paper has."""
    for title in ("A backbone", "A simulator", "An ablation"):
        follow(tree, title, VLA_DOT_PYTHON=sys.executable)
    shutil.copytree(ROOT / "tests", tree / "tests")
    names = ("backbones", "study", "fits", "capability")
    files = " ".join(f"tests/vlm4vla/test_{name}.py" for name in names)
    out = run(tree, f"python -m pytest -q -n0 -p no:cacheprovider {files}", {})
    assert out.returncode == 0, out.stdout[-3000:] + out.stderr


def assert_reported(tree, made):
    """The report of a store with one finished run has its number, without one of the paper."""
    row, store = benchmark(made.benchmark), Builder(str(tree / "store"))
    name = store.train(made)
    for step in row.recipe.checkpoints:
        for horizon in row.horizons:
            wins = dict.fromkeys(row.tasks, share(step / row.recipe.steps / horizon, 4))
            store.play(store.cell(name, step, horizon, row.name), wins)
    out = run(tree, f"python jobs/report.py --store {store.url} --out site", {})
    assert out.returncode == 0, out.stdout + out.stderr
    (line,) = [
        x
        for x in (tree / "site/tables/table2.md").read_text().splitlines()
        if made.backbone in x and "libero10" in x
    ]
    assert "| – | 100.0 [" in line


def test_adding_a_simulator(tree):
    (said,) = follow(tree, "A simulator", VLA_DOT_PYTHON=sys.executable)
    assert said.startswith("dot: works\n")
    made = subprocess.run(["make", "-n", "dot"], cwd=tree, capture_output=True, text=True)
    assert "bash infra/simulators/setup.sh dot" in made.stdout, made.stderr


@pytest.mark.full
def test_adding_an_ablation(tree):
    (said,) = follow(tree, "An ablation")
    row = next(line for line in said.splitlines() if line.startswith("table11"))
    assert row.split()[1:3] == ["6", "6"], "three freezes x two prompts"
    plan = json.loads((tree / "plan.json").read_text())
    assert plan["tables"]["table11"]["title"] == "Table 11: freeze prompt (not in the paper)"
    assert {row["printed"] for row in plan["rows"]} == {None}


def test_what_contributing_calls_one_row_is_one(tree):
    """A stage without a tiny stand-in, a size more of PaliGemma 2, and a new architecture."""
    stages, backbones = (tree / "vlm4vla" / name for name in ("stages.py", "backbones.py"))
    before = '     AuxStage("robobrain2", _Q7, weights="BAAI/RoboBrain2.0-7B"),\n'
    change(stages, before + '+    _on("gqa", _Q3, "general"),\n')
    hub = "microsoft/kosmos-2-patch14-224"
    last = f'     _kosmos("kosmos-2", "kosmos-2", "{hub}", configs.KOSMOS_2),\n'
    ten = '+    _paligemma("paligemma2-10b", "paligemma-2", "google/x", configs.PALIGEMMA_2),\n'
    new = '+    _paligemma("paligemma-3", "paligemma-3", "google/y", configs.PALIGEMMA_2),\n'
    change(backbones, last + ten + new)
    code = """
from vlm4vla.backbones import BACKBONES
from vlm4vla.stages import STAGES, TINY_STAGES
added = [name for name in BACKBONES if name.endswith(("10b", "a-3"))]
print(STAGES.keys() - TINY_STAGES.keys(), added)
"""
    out = run(tree, f"python -c {shlex.quote(code)}", {})
    assert out.stdout == "{'gqa'} ['paligemma2-10b', 'paligemma-3', 'tiny-paligemma2-10b']\n"


def test_results_are_read_as_the_page_says(tmp_path, ray_cluster):
    """On a small store with a cell, a training's figures and a search."""
    builder = Builder(str(tmp_path))
    cell = builder.cell(builder.train(Run("tiny-kosmos-2", "tabletop")), 1000, 2, "tabletop")
    rows = builder.play(cell, {"reach": share(0.25, 8)}, compact=False)
    builder.ledger.compact(cell, [row.episode for row in rows])

    def trial(config):
        tune.report({"success": 0.5, "gpu_hours": 1.5, "training": False, "run": "a-run"})

    row = benchmark("tabletop")
    rules = Rules(row.tasks, 1, row.horizons)
    cluster = CLUSTERS["laptop"]
    setting = Setting(builder.store, row, cluster, None, "print", "data", rules)
    trial.settings = {"tabletop": setting}
    tuning.search(trial, tuning.Search("lr", {"lr": tune.grid_search([0.1])}))
    page = (ROOT / "docs" / "operating.md").read_text()
    [code] = [text for kind, _, text in BLOCK.findall(page) if kind == "python"]
    environment = {**os.environ, "VLA_STORE": builder.url}
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr
    assert "2 {'reach': 0.25}" in out.stdout, "rows that are there twice count once"
    assert "'step': 20" in out.stdout and "'loss':" in out.stdout
    assert re.search(r"a-run +0\.5 +1\.5", out.stdout)


def test_a_change_that_no_longer_fits_is_noticed(tree):
    with pytest.raises(AssertionError, match="no longer has once"):
        change(tree / "envs" / "benchmarks.py", " not there\n+new\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_files_that_exist(page):
    text = page.read_text()
    named = (
        r"(?<![\w/.-])((?:infra|docs|jobs|tests|vlm4vla|envs|platform|dashboards)/[\w./-]+\.\w+)"
    )
    for path in re.findall(named, text):
        exists = (ROOT / path).exists() or "NAME" in path or "dot" in path
        assert exists, f"{page.name}: {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_pages_can_be_typed(page):
    wrong = {command: printed.problems(command) for command in printed.of_page(page.read_text())}
    # A section's commands run after its changes to the tree.
    wrong = {command: what for command, what in wrong.items() if what and "dot" not in command}
    assert not wrong


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_commands_of_jobs_can_be_typed(job):
    commands = list(printed.of_job(job))
    assert [(each, what) for each in commands if (what := printed.problems(each))] == []


def test_every_job_that_trains_takes_the_cluster_s_flags():
    training = [job.stem for job in JOBS if "--preset" in printed.flags(job.stem)]
    training = [job for job in training if job not in ("evaluate", "feature_similarity")]
    assert len(training) == 7
    for job in training:
        assert {"--workers", "--gpu-gb"} <= printed.flags(job), job


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("jobs/evaluate.py --policy x", "not a program: jobs/evaluate.py"),
        ("python -m vlm4vla.planner x", "not a program: python"),
        (".venv/bin/python jobs/evalute.py", "nothing to run: jobs/evalute.py"),
        (".venv/bin/python -m vlm4vla.planer x", "nothing to run: -m vlm4vla.planer"),
        ("make librero", "no target librero"),
        (".venv/bin/python jobs/study.py --tabels 1", "jobs/study.py has no --tabels"),
        ('make submit JOB=jobs/study.py ARGS="--presets cluster"', "has no --presets"),
        ("sbatch --nodes=4 x.sbatch jobs/study.py --concurent 4", "has no --concurent"),
    ],
)
def test_a_command_that_cannot_be_typed_is_noticed(command, said):
    page = f"Text:\n\n```\n{command}  # why\n\noutput\n```\n"
    for found in (printed.of_page(page), printed.of_page(f"Type `{command}` there.")):
        assert said in printed.problems(*found)[0]
