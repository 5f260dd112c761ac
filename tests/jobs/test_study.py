"""The dry run as a user starts it."""

import json
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from vla_platform import artifacts
from vla_platform.cluster import CLUSTERS
from vla_platform.store import open_store

from vlm4vla.run import Run
from vlm4vla.study import TABLES

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
    assert not (tmp_path / "store").exists()


def test_dry_run_sees_what_is_in_the_store(tmp_path, monkeypatch):
    store, entry = open_store(str(tmp_path / "store")), TABLES["table10"].entries()[0]
    for step in (0, 10_000, 30_000):
        artifacts.complete_policy(store, entry.id, step, "0" * 64)
    out = tmp_path / "plan.json"
    tables = ("--tables", "10", "1")
    assert study(monkeypatch, store.url, "--dry-run", *tables, "--json", out) == 0
    made = json.loads(out.read_text())
    assert (made["entries"], made["trainings"]) == (18, 16)
    assert (made["stored"], made["checkpoints"]) == (1, 2)
    assert [t["stored"] for t in made["tables"].values()] == [1, 1]
    assert made["gpu_hours_left"] < made["gpu_hours"]


def test_dry_run_bills_every_seed(tmp_path, monkeypatch):
    out = tmp_path / "plan.json"
    table = ("--dry-run", "--tables", "5", "--json", out)
    assert study(monkeypatch, tmp_path / "store", *table, "--seeds", 3) == 0
    made = json.loads(out.read_text())
    assert (made["entries"], made["trainings"]) == (36, 36)


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
