"""An exported policy in a process that imports neither Ray nor DeepSpeed: same actions."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from envs import tabletop
from tests.vlm4vla.train_worker import ROW, Plan, make_dataset, run_plan
from vlm4vla.export import DESCRIPTION, load_policy
from vlm4vla.hub import VLM4VLA, export

ROOT = Path(__file__).resolve().parents[2]
READER = """
import sys
import numpy as np
from envs import tabletop
from envs.benchmarks import benchmark
from vlm4vla.hub import VLM4VLA
policy = VLM4VLA.from_pretrained(sys.argv[1])
seen = tabletop.Tabletop(benchmark("tabletop")).reset("reach", 3)
np.save(sys.argv[2], policy.act([seen]))
print(sorted({"ray", "deepspeed", "vla_platform"} & {name.split(".")[0] for name in sys.modules}))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    dataset = folder / "dataset"
    dataset.mkdir()
    run_plan(Plan("run", {}, steps=2), folder, make_dataset(dataset))
    return folder / "run" / "step-00000002"


def test_an_exported_policy_acts_the_same_without_ray_and_deepspeed(trained, tmp_path):
    rate = {"task": "reach", "successes": 9, "trials": 10, "low": 0.6, "high": 0.98}
    scores = [{**rate, "benchmark": "tabletop", "checkpoint": "trained", "horizon": 4}]
    export(trained, tmp_path / "out", {"loss": 0.25}, scores)
    command = [sys.executable, "-c", READER, str(tmp_path / "out"), str(tmp_path / "actions.npy")]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    seen = tabletop.Tabletop(ROW).reset("reach", 3)
    assert np.array_equal(load_policy(trained).act([seen]), np.load(tmp_path / "actions.npy"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| tabletop | reach | trained | 4 | 90.0% | 60–98% | 10 |" in card
    assert "profile `paper`, 2 steps of 8 samples" in card
    assert "loss: 0.25" in card


def test_what_a_recipe_overrides_travels_with_the_policy(trained):
    told = json.loads((trained / DESCRIPTION).read_text())
    assert told["overrides"]["huber_delta"] == load_policy(trained).recipe.huber_delta == 0.5


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no exported policy.*jobs/export_policy.py"):
        VLM4VLA.from_pretrained(tmp_path)
