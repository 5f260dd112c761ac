"""What runs need that nobody prepared: all of it told at once, with the commands."""

import sys
from dataclasses import replace

import pytest
from vla_platform import needs
from vla_platform.cluster import CLUSTERS
from vla_platform.store import open_store
from vla_platform.study import Study

from envs.benchmarks import BENCHMARKS
from envs.worker import has_expert
from vlm4vla import science
from vlm4vla.run import Run
from vlm4vla.stages import STAGES, TINY_STAGES


@pytest.fixture
def folder(tmp_path):
    return open_store(str(tmp_path / "store"))


def test_who_has_a_scripted_expert():
    known = {row.simulator: has_expert(row.simulator) for row in BENCHMARKS.values()}
    assert known == {"tabletop": True, "libero": True, "calvin": False, "simpler": False}
    assert has_expert("no_such_module:Adapter"), "its child will say"
    with pytest.raises(ValueError, match="Did you mean 'libero'"):
        has_expert("libreo")


def test_all_that_is_missing_is_told_with_its_command(folder):
    stages = [STAGES[name] for name in ("robopoint", "bridgevqa", "fast-vision-frozen")]
    stages += [STAGES["robobrain2"], STAGES["robo2vlm"].with_general(0.36)]
    runs = [("calvin", None), ("simpler", None), ("libero_10", None)]
    runs += [("calvin", stage) for stage in stages]
    calvin, simpler, point, spatial, general = needs.lacking(folder, runs)
    assert calvin.endswith("jobs/prepare_data.py FORMAT PATH --name calvin_abc_d")
    assert "--name bridge" in simpler
    assert point.endswith("jobs/prepare_questions.py robopoint robopoint=PATH")
    assert "bridgevqa (made with jobs/spatial_questions.py)" in spatial
    assert general.endswith(
        "prepare_questions.py robo2vlm robo2vlm=PATH general=PATH --general 0.36"
    )


def test_what_is_prepared_or_made_here_is_not_missing(folder):
    folder.put("datasets/calvin_abc_d-0123456789ab/manifest.json", b"{}")
    folder.put(f"datasets/{STAGES['robopoint'].data}/manifest.json", b"{}")
    folder.put(f"policies/{STAGES['robo2vlm'].id}/stage.json", b"{}")
    runs = [("calvin", STAGES[name]) for name in ("robopoint", "robo2vlm")]
    assert needs.lacking(folder, [*runs, ("tabletop", TINY_STAGES["vqa-mix"])]) == []


def test_a_study_refuses_before_it_starts_anything(folder, monkeypatch):
    for simulator in ("CALVIN", "SIMPLER"):  # installed, as far as anybody has looked
        monkeypatch.setenv(f"VLA_{simulator}_PYTHON", sys.executable)
    stage = replace(STAGES["robopoint"], steps=5)
    study = Study(folder, CLUSTERS["cluster"], science, print, stages={stage.id: stage})
    runs = [Run("qwen2.5vl-3b", "calvin", aux=stage.id), Run("qwen2.5vl-3b", "simpler")]
    with pytest.raises(FileNotFoundError) as refused:
        study.score(runs, None, None)
    said = str(refused.value)
    assert said.count("\n  ") == 3
    assert "robopoint=PATH" in said and "--name calvin_abc_d" in said
