"""`jobs/train.py` as a user starts it, where the store has the training already."""

import runpy
import sys
from pathlib import Path

import pytest
from vla_platform import artifacts
from vla_platform.store import open_store

from envs.benchmarks import benchmark
from vlm4vla.run import Run

ROOT = Path(__file__).resolve().parents[2]
ROW, DATA = benchmark("libero_10"), "mine-0123456789ab"


def train(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["train.py", "--benchmark", ROW.name, *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / "train.py"), run_name="__main__")
    return ended.value.code


def test_prepared_demonstrations_need_no_simulator(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLA_HOME", str(tmp_path))
    store = open_store(str(tmp_path / "store"))
    store.put(f"datasets/{DATA}/manifest.json", b"{}")
    run = Run("tiny-paligemma-1", ROW.name, steps=4, dataset=DATA).resolved(ROW.recipe)
    artifacts.complete_policy(store, run.id(ROW), 4, "0" * 64)
    flags = ("--backbone", run.backbone, "--steps", 4, "--store", store.url)
    assert train(monkeypatch, *flags, "--dataset", DATA) == 0
    assert f"policies/{run.id(ROW)}" in capsys.readouterr().out
    assert train(monkeypatch, *flags) == 2, "an expert's demonstrations are its simulator's"
    assert "make libero" in capsys.readouterr().err


def test_a_backbone_that_does_not_fit_is_refused(tmp_path, monkeypatch, capsys):
    store = open_store(str(tmp_path / "store"))
    store.put(f"datasets/{DATA}/manifest.json", b"{}")
    flags = ("--backbone", "qwen3vl-30b-a3b", "--preset", "cluster", "--dataset", DATA)
    assert train(monkeypatch, *flags, "--store", store.url) == 2
    assert "take --preset 4x8-a100 or other backbones" in capsys.readouterr().err
