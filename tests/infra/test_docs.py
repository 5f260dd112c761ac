"""What the documentation tells people to do, done: on a copy of the tree, command by command."""

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
from tests.dashboards.builder import Builder, share
from vlm4vla.run import Run

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.M | re.S)
PAGES = (ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md")))


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
    for name in ("vlm4vla", "envs", "platform", "jobs", "infra"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
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
    table, plan = follow(tree, "A backbone")
    assert "qwen3vl-32b" in table
    assert "qwen3vl-32b" in plan
    code = """
from vlm4vla.policies import build_policy
from vlm4vla.run import Run
policy = build_policy(Run("tiny-qwen3vl-32b", "tabletop", init="scratch"), 4)
print(sum(p.numel() for p in policy.parameters()))
"""
    out = run(tree, f"python -c {shlex.quote(code)}", {})
    assert int(out.stdout) > 100_000, out.stderr


def test_adding_a_simulator(tree):
    (said,) = follow(tree, "A simulator", VLA_DOT_PYTHON=sys.executable)
    assert said.startswith("dot: works\n")


@pytest.mark.full
def test_adding_an_ablation(tree):
    (said,) = follow(tree, "An ablation")
    row = next(line for line in said.splitlines() if line.startswith("table11"))
    assert row.split()[1:3] == ["6", "6"], "three freezes x two prompts"


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
def test_pages_name_files_and_targets_that_exist(page):
    text = page.read_text()
    targets = set(re.findall(r"^([\w -]+):(?!=)", (ROOT / "Makefile").read_text(), re.M))
    known = {name for line in targets for name in line.split()}
    for target in re.findall(r"`make ([a-z-]+)", text):
        assert target in known, f"{page.name}: make {target}"
    named = r"(?<![\w/.-])((?:infra|docs|jobs|tests|vlm4vla|envs|platform)/[\w./-]+\.\w+)"
    for path in re.findall(named, text):
        exists = (ROOT / path).exists() or "NAME" in path or "dot" in path
        assert exists, f"{page.name}: {path}"
