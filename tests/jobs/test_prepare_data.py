"""`prepare_data.py` as a user starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np

from tests.vlm4vla import published
from vlm4vla.data.dataset import Dataset

ROOT = Path(__file__).resolve().parents[2]


def job(home, *arguments):
    return subprocess.run(
        [sys.executable, "jobs/prepare_data.py", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "VLA_HOME": str(home), "PYTHONPATH": "platform:."},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_bad_episodes_stop_it_until_they_may_be_skipped(tmp_path):
    path, out = tmp_path / "bowl_demo.hdf5", tmp_path / "rows.json"
    published.libero(path, [3, 4, 5])
    with h5py.File(path, "a") as file:
        file["data/demo_1/actions"][2, 0] = np.inf
    flags = ["--px", 16, "--per-shard", 2, "--store", tmp_path / "store", "--json", out]
    first = job(tmp_path, "libero", path, *flags)
    assert first.returncode == 2
    assert "bowl_demo.hdf5: data/demo_1: action 2 is not finite" in first.stderr
    assert "Traceback" not in first.stderr
    second = job(tmp_path, "libero", path, *flags, "--skip-bad")
    assert second.returncode == 0, second.stderr[-2000:]
    [row] = json.loads(out.read_text())
    assert (row["episodes"], row["frames"], len(row["skipped"])) == (2, 8, 1)
    data = Dataset(tmp_path / "store/datasets" / row["dataset"], 16, lambda images: images)
    assert len(data) == 8


def test_wrong_words_get_one_sentence(tmp_path):
    answer = job(tmp_path, "libreo", tmp_path, "--store", tmp_path / "store")
    assert answer.returncode == 2
    assert "Did you mean 'libero'" in answer.stderr
    answer = job(tmp_path, "calvin", tmp_path, "--store", tmp_path / "store")
    assert answer.returncode == 2
    assert "auto_lang_ann.npy is missing" in answer.stderr
