"""The pretraining job as a user starts it: what it refuses, and what it says of a failure."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def pretrain(monkeypatch, *arguments):
    """The job's exit code."""
    monkeypatch.setattr(sys, "argv", ["pretrain_tiny.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / "pretrain_tiny.py"), run_name="__main__")
    return ended.value.code


def test_weights_that_do_not_point_are_not_written(tmp_path, monkeypatch, capsys):
    file = tmp_path / "weights.safetensors"
    flags = ("--backbone", "tiny-paligemma-1", "--steps", 1, "--output", file)
    assert pretrain(monkeypatch, *flags) == 1
    assert "stayed below 85% on pointing questions" in capsys.readouterr().out
    assert not file.exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [("tiny-paligema-1", "tiny-paligemma-1"), ("paligemma-1", "is not a tiny row")],
)
def test_other_names_are_refused(name, said, monkeypatch, capsys):
    assert pretrain(monkeypatch, "--backbone", name) != 0
    captured = capsys.readouterr()
    assert said in captured.out + captured.err
