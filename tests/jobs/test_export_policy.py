"""`jobs/export_policy.py` as a user starts it: which checkpoint, and what its card says."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from vla_platform import artifacts
from vla_platform.store import open_store

from envs.benchmarks import benchmark
from vlm4vla.export import save_policy
from vlm4vla.hub import VLM4VLA
from vlm4vla.policies import build_policy
from vlm4vla.run import Run

ROOT = Path(__file__).resolve().parents[2]
ROW, NAME = benchmark("tabletop"), "run"


@pytest.fixture(scope="module")
def digests(tmp_path_factory):
    """The folder of a store, and the digests of a run's policies by step."""
    folder, found = tmp_path_factory.mktemp("export"), {}
    store = open_store(str(folder / "store"))
    run = Run("tiny-paligemma-1", ROW.name, init="scratch").resolved(ROW.recipe)
    policy = build_policy(run, ROW.chunk)
    for step in (10, 20):
        with torch.no_grad():
            next(policy.parameters()).fill_(step)
        (folder / str(step)).mkdir()
        save_policy(policy, run, ROW, folder / str(step))
        artifacts.publish_policy(store, NAME, step, folder / str(step))
        found[step] = artifacts.file_digest(folder / str(step) / artifacts.WEIGHTS)
        artifacts.complete_policy(store, NAME, step, found[step])
    return folder / "store", found


def export(monkeypatch, store, *arguments):
    monkeypatch.setenv("VLA_HOME", str(store.parent / "home"))
    flags = ["export_policy.py", NAME, "--store", store, *arguments]
    monkeypatch.setattr(sys, "argv", list(map(str, flags)))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / "export_policy.py"), run_name="__main__")
    return ended.value.code


@pytest.mark.parametrize(("flags", "step"), [((), 20), (("--step", 10), 10)])
def test_the_checkpoint_that_was_asked_for(digests, monkeypatch, tmp_path, flags, step):
    store, found = digests
    told = tmp_path / "told.json"
    out = ("--out", tmp_path / "out", "--json", told)
    assert export(monkeypatch, store, *out, *flags) == 0
    assert json.loads(told.read_text()) == [{"run": NAME, "step": step, "digest": found[step]}]
    weights = next(VLM4VLA.from_pretrained(tmp_path / "out").parameters())
    assert weights.unique().tolist() == [step]
    assert "Not evaluated when this was exported." in (tmp_path / "out" / "README.md").read_text()


def test_a_checkpoint_that_is_not_there(digests, monkeypatch, tmp_path, capsys):
    store, _ = digests
    assert export(monkeypatch, store, "--out", tmp_path / "out", "--step", 15) == 2
    assert "has no checkpoint 15 of run 'run'; it has [10, 20]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_controls_and_horizons_are_told_apart(digests, monkeypatch, tmp_path):
    store, found = digests
    rate = {"benchmark": "tabletop", "task": "reach", "trials": 10, "low": 0.1, "high": 0.9}
    rows = [
        {**rate, "policy": found[20], "checkpoint": "trained", "horizon": 4, "successes": 8},
        {**rate, "policy": found[20], "checkpoint": "wrong-word", "horizon": 4, "successes": 2},
        {**rate, "policy": found[20], "checkpoint": "horizon 2", "horizon": 2, "successes": 6},
        {**rate, "policy": found[10], "checkpoint": "untrained", "horizon": 4, "successes": 1},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    flags = ("--scores", tmp_path / "rows.json", "--out", tmp_path / "out")
    assert export(monkeypatch, store, *flags) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert [line for line in card.splitlines() if line.startswith("| tabletop")] == [
        "| tabletop | reach | trained | 4 | 80.0% | 10–90% | 10 |",
        "| tabletop | reach | wrong-word | 4 | 20.0% | 10–90% | 10 |",
        "| tabletop | reach | horizon 2 | 2 | 60.0% | 10–90% | 10 |",
    ]
