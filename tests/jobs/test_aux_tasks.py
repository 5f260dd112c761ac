"""Stages as a user starts them: published data prepared, Tables 10 and 4 on the laptop."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def job(name, store, *flags):
    """Its words and its rows."""
    out = store.parent / "rows.json"
    command = [sys.executable, f"jobs/{name}.py", *flags, "--store", store, "--json", out]
    done = subprocess.run(
        [*map(str, command)],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(out.read_text())


def test_published_questions_become_shards_and_bad_rows_are_told(tmp_path):
    data = tmp_path / "robopoint-data"
    data.mkdir()
    Image.new("RGB", (8, 8)).save(data / "a.png")
    said = [{"from": "human", "value": "<image>\nwhere?"}, {"from": "gpt", "value": "[(0.5, 0.5)]"}]
    rows = [{"image": name, "conversations": said} for name in ("a.png", "b.png")]
    (data / "robopoint_1432k.json").write_text(json.dumps(rows))
    said, (row,) = job("prepare_questions", tmp_path / "store", "robopoint", f"robopoint={data}")
    assert "left out robopoint_1432k.json: 1: picture: FileNotFoundError" in said
    assert "1 rows left out" in said
    assert row["counts"] == {"robopoint": [1, 0]}
    _, same = job("prepare_questions", tmp_path / "store", "robopoint")
    assert same == [row]


@pytest.mark.full
def test_a_stage_is_trained_once_for_all_that_start_from_it(tmp_path):
    store = tmp_path / "store"
    flags = ("--stages", "vica332k", "--stage-steps", "4", "--seeds", "2", "--states", "1")
    said, rows = job("aux_tasks", store, *flags, "--confirm", "0")
    assert [(row["aux"] is None, row["seed"]) for row in rows] == [
        *((True, 0), (True, 1), (False, 0), (False, 1))
    ]
    assert all(len(row["by_step"]) == 5 for row in rows)
    (stage,) = {row["aux"] for row in rows if row["aux"]}
    assert (store / "leases" / "stages" / stage / "00000001").exists()
    assert not (store / "leases" / "stages" / stage / "00000002").exists()
    assert "tabletop-number/number" in said


@pytest.mark.full
def test_the_six_cells_of_action_injection(tmp_path):
    store = tmp_path / "store"
    flags = ("--steps", "4", "--stage-steps", "4", "--states", "1", "--confirm", "0")
    said, rows = job("action_injection", store, *flags)
    assert len({(row["aux"], row["freeze"]) for row in rows}) == 6
    assert {row["freeze"] for row in rows} == {"none", "vision"}
    assert said.count("tabletop-actions/action") == 2
    stages = {row["aux"] for row in rows if row["aux"]}
    turns = {stage: os.listdir(store / "leases" / "stages" / stage) for stage in stages}
    assert len(turns) == 2
    assert all("00000002" not in taken for taken in turns.values())
