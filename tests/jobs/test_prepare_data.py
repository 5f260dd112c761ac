"""`prepare_data.py` and `export_lerobot.py` as a user starts them."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from tests.vlm4vla import published
from vlm4vla.data.dataset import Dataset
from vlm4vla.data.lerobot_v3 import LeRobotV3

ROOT = Path(__file__).resolve().parents[2]


def job(home, *arguments, name="prepare_data"):
    return subprocess.run(
        [sys.executable, f"jobs/{name}.py", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "VLA_HOME": str(home), "PYTHONPATH": "platform:."},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def spoilt(tmp_path):
    """A LIBERO file whose second demonstration has an infinite action, and the job's flags."""
    path = tmp_path / "bowl_demo.hdf5"
    published.libero(path, [3, 4, 5])
    with h5py.File(path, "a") as file:
        file["data/demo_1/actions"][2, 0] = np.inf
    return path, ["--px", 16, "--per-shard", 2, "--store", tmp_path / "store"]


@pytest.mark.full
def test_a_bad_episode_stops_it(tmp_path, spoilt):
    path, flags = spoilt
    answer = job(tmp_path, "libero", path, *flags)
    assert answer.returncode == 2
    assert "bowl_demo.hdf5: data/demo_1: action 2 is not finite" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert job(tmp_path, "libero", path, *flags, "--skip-bad").returncode == 0


def test_bad_episodes_are_left_out_and_listed(tmp_path, spoilt):
    (path, flags), out = spoilt, tmp_path / "rows.json"
    answer = job(tmp_path, "libero", path, *flags, "--skip-bad", "--json", out)
    assert answer.returncode == 0, answer.stderr[-2000:]
    [row] = json.loads(out.read_text())
    assert (row["episodes"], row["frames"], len(row["skipped"])) == (2, 8, 1)
    assert f"no benchmark trains on libero of itself: pass --dataset {row['dataset']}" in (
        answer.stdout
    )
    data = Dataset(tmp_path / "store/datasets" / row["dataset"], 16, lambda images: images)
    assert len(data) == 8
    strict = job(tmp_path, "libero", path, *flags)
    assert strict.returncode == 2 and "--skip-bad leaves them out" in strict.stderr
    exported = [row["dataset"], tmp_path / "set", "--images", "--store", tmp_path / "store"]
    answer = job(tmp_path, *exported, name="export_lerobot")
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert [demo.steps for demo in LeRobotV3(tmp_path / "set")] == [3, 5]


def test_examples_make_data_that_benchmarks_find():
    found = runpy.run_path(str(ROOT / "jobs" / "prepare_data.py"), run_name="imported")
    examples = [line for line in found["__doc__"].splitlines() if line.startswith(".venv")]
    names = [re.search(r"--name (\w+)", line)[1] for line in examples]
    said = [found["used_by"](SimpleNamespace(name=name, id=f"{name}-0")) for name in names]
    assert said == ["calvin trains on it", "libero_10 trains on it", "simpler trains on it"]


def test_wrong_words_get_one_sentence(tmp_path):
    answer = job(tmp_path, "libreo", tmp_path, "--store", tmp_path / "store")
    assert answer.returncode == 2
    assert "Did you mean 'libero'" in answer.stderr
    answer = job(tmp_path, "calvin", tmp_path, "--store", tmp_path / "store")
    assert answer.returncode == 2
    assert "auto_lang_ann.npy is missing" in answer.stderr
