"""The dry run as a user starts it."""

import json
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from vla_platform import artifacts
from vla_platform.artifacts import Checkpoint
from vla_platform.cluster import CLUSTERS
from vla_platform.contest import Entrant, Standing
from vla_platform.store import open_store
from vla_platform.study import Study

from envs.benchmarks import benchmark
from vlm4vla import science
from vlm4vla.run import Run
from vlm4vla.selection import select
from vlm4vla.study import TABLES, Grid, Table

ROOT = Path(__file__).resolve().parents[2]


def study(monkeypatch, store, *arguments):
    """The job's exit code."""
    flags = ["study.py", "--store", str(store), *map(str, arguments)]
    monkeypatch.setattr(sys, "argv", flags)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / "study.py"), run_name="__main__")
    return ended.value.code


def test_dry_run_of_everything(tmp_path, monkeypatch, capsys):
    out = tmp_path / "plan.json"
    assert study(monkeypatch, tmp_path / "store", "--dry-run", "--json", out) == 0
    made = json.loads(out.read_text())
    assert (made["entries"], made["trainings"], made["baselines"]) == (104, 78, 4)
    assert sum(table["entries"] for table in made["tables"].values()) == 104
    assert sum(table["baselines"] for table in made["tables"].values()) == 4
    assert made["tables"]["table5"]["trainings"] == 12
    assert set(made["figures"]) == {"figure3", "figure4"}
    ids = {row["id"] for row in made["rows"] if row["kind"] == "entry"}
    assert len(ids) == made["trainings"]
    assert {row["kind"] for row in made["rows"]} == {"entry", "baseline", "quoted"}
    said = capsys.readouterr().out
    assert "104 entries" in said
    assert "78 trainings" in said
    assert "44 runs, 24,800 steps" in said  # what the same command runs here
    assert not (tmp_path / "store").exists()


def test_dry_run_sees_what_is_in_the_store(tmp_path, monkeypatch):
    store, out = open_store(str(tmp_path / "store")), tmp_path / "plan.json"
    first, second = "calvin_abc_d-0123456789ab", "calvin_abc_d-ba9876543210"
    run = replace(TABLES["table10"].entries()[0].run, dataset=first)
    for step in (0, 10_000, 30_000):
        artifacts.complete_policy(store, run.id(benchmark("calvin")), step, "0" * 64)

    def plan(*flags):
        tables = ("--tables", "10", "1")
        assert study(monkeypatch, store.url, "--dry-run", *tables, *flags, "--json", out) == 0
        made = json.loads(out.read_text())
        assert (made["entries"], made["trainings"]) == (18, 16)
        return made

    assert plan()["stored"] == 0, "nobody knows yet what calvin's data are"
    artifacts.dataset_put(store, first)(artifacts.MANIFEST, b"{}")
    made = plan()
    assert (made["stored"], made["checkpoints"]) == (1, 2)
    assert [t["stored"] for t in made["tables"].values()] == [1, 1]
    assert made["gpu_hours_left"] < made["gpu_hours"]
    artifacts.dataset_put(store, second)(artifacts.MANIFEST, b"{}")
    assert plan("--dataset", first)["stored"] == 1
    assert plan("--dataset", second)["stored"] == 0


def test_dry_run_bills_every_seed(tmp_path, monkeypatch):
    out = tmp_path / "plan.json"
    table = ("--dry-run", "--tables", "5", "--json", out)
    assert study(monkeypatch, tmp_path / "store", *table, "--seeds", 3) == 0
    made = json.loads(out.read_text())
    assert (made["entries"], made["trainings"]) == (36, 36)


def test_dry_run_names_the_data_to_prepare(tmp_path, monkeypatch, capsys):
    out = tmp_path / "plan.json"
    tables = ("--dry-run", "--tables", "4", "10", "--json", out)
    assert study(monkeypatch, tmp_path / "store", *tables) == 0
    said = capsys.readouterr().out
    assert "jobs/prepare_data.py FORMAT PATH --name calvin_abc_d" in said
    assert "jobs/prepare_questions.py vqa-mix vica332k=PATH spacer=PATH" in said
    assert len(json.loads(out.read_text())["missing"]) == 8


def test_tables_show_what_has_a_score_and_its_policy(tmp_path, monkeypatch, capsys):
    """Of the documented kind: a table that the paper does not have, on the laptop's benchmark."""
    kept = Run("tiny-paligemma-1", "tabletop")
    grid = Grid((kept, replace(kept, freeze=("vision",))))
    table = Table("table11", "table11_mine", "{backbone}", "{benchmark}", (grid,))
    monkeypatch.setitem(TABLES, "table11", table)
    job = runpy.run_path(str(ROOT / "jobs" / "study.py"))
    wanted = {entry: entry.run for entry in job["entries"]([table], [0])}
    first = next(iter(wanted))
    entrants = {Entrant(Checkpoint("f00", 20, "5" * 64), 2): {"reach": {0: 1.0, 1: 0.0}}}
    standing = Standing(select(entrants), (1.0, 0.0), confirmed=0, played=2, saved=0)
    store = open_store(str(tmp_path / "store"))
    made = Study(store, CLUSTERS["laptop"], science, print)
    row = made.row(kept, standing)
    assert (row["run"], row["checkpoint"], row["digest"]) == ("f00", "f00@20", "5" * 64)
    assert (row["policy"], row["lr"], row["steps"]) == ("action_query", 2e-3, 1000)
    assert row["dataset"].startswith("tabletop-")
    job["show_tables"](wanted, {first: row}, False)
    scored, unscored = capsys.readouterr().out.splitlines()[-2:]
    assert scored.split()[:3] == ["tiny-paligemma-1", "tabletop", "0"]
    assert "50% [" in scored and scored.endswith("–             f00@20")
    assert "not scored" in unscored


def test_dry_run_of_some_benchmarks(tmp_path, monkeypatch):
    out = tmp_path / "plan.json"
    table = ("--dry-run", "--tables", "2", "6", "--json", out)
    assert study(monkeypatch, tmp_path / "store", *table, "--benchmarks", "libero_10") == 0
    made = json.loads(out.read_text())
    assert {row["benchmark"] for row in made["rows"]} == {"libero_10"}
    assert (made["tables"]["table2"]["entries"], made["tables"]["table6"]["entries"]) == (9, 0)


def test_what_the_gpus_cannot_hold_is_left_out_unless_it_is_stored(capsys):
    job = runpy.run_path(str(ROOT / "jobs" / "study.py"), run_name="study")
    small, large, done = (
        Run(name, "calvin", seed=seed)
        for name, seed in (("kosmos-2", 0), ("qwen3vl-30b-a3b", 0), ("qwen3vl-30b-a3b", 1))
    )
    standings = {small: None, large: None, done: "a score"}
    study = SimpleNamespace(cluster=CLUSTERS["cluster"], standings=lambda runs: standings)
    assert job["without_too_large"](study, [small, large, done]) == [small, done]
    assert "left out, too large" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("chosen", "named"), [([], ["simpler", "libero"]), (["--benchmarks", "libero_10"], ["libero"])]
)
def test_missing_simulators_are_named_together_before_anything_runs(
    tmp_path, monkeypatch, capsys, chosen, named
):
    monkeypatch.setenv("VLA_HOME", str(tmp_path))
    flags = ("--preset", "cluster", "--tables", "2", *chosen)
    assert study(monkeypatch, tmp_path / "store", *flags) == 2
    said = capsys.readouterr()
    assert re.findall(r"`make (\w+)`", said.err) == named
    assert "not scored yet" not in said.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dry-run", "--tables", "tabel5"], "Did you mean 'table5'"),
        (["--dry-run", "--tables", "9"], "nothing is trained"),
        (["--error", "1.5"], "not between 0 and 1"),
        (["--tables", "1", "--benchmarks", "simpler"], "nothing in these tables is on simpler"),
        (["--workers", "4", "2"], "--workers 4 2: the first is the fewest"),
        (["--dry-run", "--store", "ftp://host/x"], "scheme 'ftp'"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, said):
    assert study(monkeypatch, tmp_path / "store", *arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 1
    assert said in errors[0]
