"""A policy's two files: their identity, and that neither goes with another's."""

import json
from dataclasses import replace

import pytest

from envs.benchmarks import benchmark
from vlm4vla.data.normalise import Normaliser, Statistics
from vlm4vla.export import DESCRIPTION, WEIGHTS, load_policy, save_policy
from vlm4vla.policies import build_policy
from vlm4vla.run import Run

ROW = benchmark("tabletop")
RUN = Run("tiny-paligemma-1", ROW.name, init="scratch").resolved(ROW.recipe)


@pytest.fixture(scope="module")
def policy():
    return build_policy(RUN, ROW.chunk)


def normaliser(high):
    names = Statistics.__dataclass_fields__
    zeros = dict.fromkeys(names, [0.0] * 7)
    return Normaliser("quantile", Statistics.from_json(zeros | {"q99": [high] * 7}))


def saved(policy, folder, run=RUN, row=ROW):
    folder.mkdir()
    save_policy(policy, run, row, folder)
    return (folder / WEIGHTS).read_bytes()


def test_weights_that_act_otherwise_are_another_file(policy, tmp_path):
    """As untrained ones of two data sets: the digest of the file is the policy's identity."""
    acting = [
        saved(policy, tmp_path / "a"),
        saved(policy, tmp_path / "b", replace(RUN, prompt="short")),
        saved(policy, tmp_path / "c", replace(RUN, image_px=112)),
        saved(policy, tmp_path / "d", row=replace(ROW, chunk=ROW.chunk + 1)),
    ]
    policy.normaliser = normaliser(1.0)
    acting.append(saved(policy, tmp_path / "e"))
    policy.normaliser = normaliser(2.0)
    acting.append(saved(policy, tmp_path / "f"))
    policy.normaliser = None
    assert len(set(acting)) == len(acting)
    longer = replace(RUN, steps=99_999, lr=1e-9, dataset="other", freeze=("vision",))
    assert saved(policy, tmp_path / "g", longer) == acting[0], "only its training differs"


def test_a_description_of_another_policy_is_refused(policy, tmp_path):
    saved(policy, tmp_path / "own")
    load_policy(tmp_path / "own")
    path = tmp_path / "own" / DESCRIPTION
    told = json.loads(path.read_text())
    told["run"]["prompt"] = "short"
    path.write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"not what .* was saved with"):
        load_policy(tmp_path / "own")
