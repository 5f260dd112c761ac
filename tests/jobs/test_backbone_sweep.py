"""The main job as a user starts it: a process of its own, results in JSON."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *("--backbones", "tiny-paligemma-1", "--init", "scratch", "--steps", "4", "--batch", "8"),
    *("--trials", "2", "--demonstrations", "3"),
]


def sweep(*arguments, home=None):
    environment = {**os.environ, **({"VLA_HOME": str(home)} if home else {})}
    return subprocess.run(
        [sys.executable, "jobs/backbone_sweep.py", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_second_sweep_reads_what_the_first_did(tmp_path):
    out = tmp_path / "rows.json"
    common = [*SMALL, "--store", tmp_path / "store", "--json", out]
    first = sweep(*common, home=tmp_path)
    assert first.returncode == 0, first.stderr[-2000:]
    rows = json.loads(out.read_text())
    assert {row["checkpoint"] for row in rows} == {"trained", "untrained", "wrong-word"}
    assert {row["task"] for row in rows} == {"reach", "push", "pick-and-place", "all"}
    for row in rows:
        each = 2 if row["checkpoint"] == "trained" else 1
        assert row["trials"] == each * (3 if row["task"] == "all" else 1)
    assert all(0 <= row["low"] <= row["high"] <= 1 for row in rows)
    second = sweep(*common, home=tmp_path)
    assert "trained nothing and rolled nothing out" in second.stdout
    assert json.loads(out.read_text()) == rows
    table = [line for line in first.stdout.splitlines() if line.startswith("tiny-paligemma-1  ")]
    assert table == [x for x in second.stdout.splitlines() if x.startswith("tiny-paligemma-1  ")]
    (row,) = [x for x in rows if (x["checkpoint"], x["task"]) == ("trained", "all")]
    for done in (first, second):
        assert f"tiny-paligemma-1: {row['run']}@4" in done.stdout.splitlines()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backbones", "tiny-qwen3vl-3b"], "Did you mean 'tiny-qwen3vl-"),
        (["--benchmark", "tabeltop"], "Did you mean 'tabletop'"),
        (["--tasks", "rech"], "Did you mean 'reach'"),
        (["--horizon", "9"], "the horizon is 1 to 4, not 9"),
        (["--trials", "0"], "--trials: must be a whole number"),
        (["--store", "s3://bucket/x?endpoint=http://127.0.0.1:9"], "127.0.0.1:9"),
        (["--store", "ftp://host/x"], "scheme 'ftp'"),
        (["--benchmark", "libero_object"], "make libero"),
        (["--preset", "cluster", "--backbones", "qwen3vl-30b-a3b"], "make libero"),
        (
            [*("--preset", "cluster", "--benchmark", "tabletop", "--backbones"), "qwen3vl-30b-a3b"],
            "--preset 4x8-a100",
        ),
        (["--preset", "4x8-a100", "--benchmark", "tabletop", "--gpu-gb", "5"], "kosmos-2 takes"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(tmp_path, monkeypatch, capsys, arguments, said):
    base = [] if "--store" in arguments else ["--store", str(tmp_path / "store")]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "anything")
    monkeypatch.setenv("VLA_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["backbone_sweep.py", *base, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / "backbone_sweep.py"), run_name="__main__")
    assert ended.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 1
    assert said in errors[0]
    assert not list(tmp_path.glob("store/policies/*"))
