"""The freeze ablation's grid: which runs it asks for, by its flags."""

import runpy
import sys
from pathlib import Path

import pytest
from vla_platform.study import Study

ROOT = Path(__file__).resolve().parents[2]


def asked(monkeypatch, tmp_path, *flags):
    """The runs that the job wants scored, none of which is then."""
    found = []

    def score(self, runs, wanted, make_run):
        found.extend(runs)
        return {}

    monkeypatch.setattr(Study, "score", score)
    monkeypatch.setattr(sys, "argv", ["freeze_ablation.py", "--store", str(tmp_path), *flags])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / "freeze_ablation.py"), run_name="__main__")
    assert ended.value.code == 1, "runs without a score are told by the exit code"
    return found


def test_table_3_is_what_it_runs_without_flags(monkeypatch, tmp_path, capsys):
    runs = asked(monkeypatch, tmp_path)
    names = ("tiny-qwen2.5vl-3b", "tiny-paligemma-1")  # the 7B's tiny variant is the 3B's
    frozen = ((), ("vision",), ("embed",))
    assert [(run.backbone, run.freeze) for run in runs] == [(n, f) for n in names for f in frozen]
    assert {(run.benchmark, run.image_px, run.seed) for run in runs} == {("tabletop", 224, 0)}
    assert "6 runs have no score: the same command continues" in capsys.readouterr().out


def test_pictures_and_seeds_are_axes_too(monkeypatch, tmp_path):
    flags = ("--backbones", "tiny-paligemma-1", "--freeze", "none", "vision", "--steps", "7")
    runs = asked(monkeypatch, tmp_path, *flags, "--image-px", "224", "336", "--seeds", "2")
    axes = {(run.freeze, run.image_px, run.seed) for run in runs}
    assert len(runs) == len(axes) == 8
    assert {run.steps for run in runs} == {7}
