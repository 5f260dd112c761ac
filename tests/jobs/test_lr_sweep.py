"""A learning-rate grid through Ray Tune as a user starts it: two runs, then nothing, then one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray.tune import ExperimentAnalysis

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.full


def sweep(store, *flags):
    out = store.parent / "rows.json"
    command = [sys.executable, "jobs/lr_sweep.py", "--store", store, "--json", out]
    command += ["--backbones", "tiny-paligemma-1", "--steps", "4", "--states", "2"]
    done = subprocess.run(
        [*map(str, command), "--confirm", "1", *map(str, flags)],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(out.read_text())


def test_grid_resumes_extends_and_opens_in_tune(tmp_path):
    store = tmp_path / "store"
    said, rows = sweep(store, "--lrs", 1e-3, 2e-3)
    assert "2 of 2 runs are not scored yet" in said
    assert [row["lr"] for row in rows] == [1e-3, 2e-3]
    assert all(row["states"] == 6 and row["confirmed_on"] == 3 for row in rows)
    (experiment,) = (store / "tune").glob("lr-*")
    table = ExperimentAnalysis(str(experiment)).dataframe()
    assert sorted(table["config/lr"]) == [1e-3, 2e-3]
    assert set(table["run"]) == {path.name for path in (store / "policies").iterdir()}

    again, same = sweep(store, "--lrs", 1e-3, 2e-3)
    assert same == rows
    assert "Tune" not in again, "a finished grid starts nothing"

    more, three = sweep(store, "--lrs", 1e-3, 2e-3, 5e-3)
    assert "1 of 3 runs are not scored yet" in more
    assert three[:2] == rows
