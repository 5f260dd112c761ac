"""What the documentation tells people to do, done: on a copy of the tree, command by command."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import printed

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.M | re.S)
PAGES = (ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md")))

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


def test_a_change_that_no_longer_fits_is_noticed(tree):
    with pytest.raises(AssertionError, match="no longer has once"):
        change(tree / "envs" / "benchmarks.py", " not there\n+new\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_files_that_exist(page):
    text = page.read_text()
    named = r"(?<![\w/.-])((?:infra|docs|jobs|tests|vlm4vla|envs|platform)/[\w./-]+\.\w+)"
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
