"""The evaluation job as a user starts it."""

import json
import os
import runpy
import subprocess
import sys
from dataclasses import asdict
from functools import reduce
from pathlib import Path

import pytest
import ray
import torch
from vla_platform import artifacts
from vla_platform.candidates import Served, candidates, import_folder, policy_files
from vla_platform.cluster import CLUSTERS
from vla_platform.scoring import Plan, Scoring
from vla_platform.store import open_store

from envs.benchmarks import benchmark
from tests.vla_platform.test_inference import checkpoint_of
from tests.vla_platform.test_remote import server
from tests.vlm4vla.policy_helpers import fresh
from tests.vlm4vla.test_weights import released_name
from vlm4vla.export import load_policy
from vlm4vla.released import released_policy

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store with one policy, and the same policy as an exported folder."""
    folder = tmp_path_factory.mktemp("evaluate")
    store = open_store(str(folder / "store"))
    checkpoint = checkpoint_of(store, folder / "exported", "tiny-paligemma-1")
    return folder, checkpoint


def evaluate(folder, *arguments):
    command = [sys.executable, "jobs/evaluate.py", "--store", folder / "store", *arguments]
    return subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env={**os.environ, "VLA_HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_any_policies_at_any_horizons_and_a_second_run_plays_nothing(trained, tmp_path):
    folder, checkpoint = trained
    out = tmp_path / "rows.json"
    with server("declare") as url:
        policies = [checkpoint.run, folder / "exported", url]
        common = ["--policy", *policies, "--benchmark", "tabletop", "--horizons", 4, 2]
        common += ["--tasks", "reach", "push", "--trials", 2, "--evaluation", "e", "--json", out]
        first = evaluate(folder, *common, "--videos")
        assert first.returncode == 0, first.stderr[-3000:]
        rows = json.loads(out.read_text())
        second = evaluate(folder, *common)
    assert "played nothing: everything was in the store" in second.stdout
    assert json.loads(out.read_text()) == rows
    # 3 policies x 2 horizons x (2 tasks and their total); the folder shares the run's episodes
    assert len(rows) == 18 and all(row["missing"] == 0 for row in rows)
    assert "played 16 episodes" in first.stdout
    assert [line for line in first.stdout.splitlines() if "horizon 4" in line]
    videos = [line.split()[-1] for line in first.stdout.splitlines() if line.startswith("video: ")]
    assert videos and all((folder / "store" / key).stat().st_size > 1000 for key in videos)
    wrong = evaluate(
        folder, "--policy", checkpoint.run, "--instruction", "wrong", "--tasks", "reach",
        "--trials", 2, "--json", out,
    )  # fmt: skip
    assert wrong.returncode == 0, wrong.stderr[-2000:]
    assert "horizon 2, wrong word" in wrong.stdout
    assert "played 2 episodes" in wrong.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policy", "RUNx"], "Did you mean"),
        (["--policy", "RUN@7"], "has no checkpoint at step 7; it has [0]"),
        (["--policy", "/nowhere/policy"], "there is no folder /nowhere/policy"),
        (["--policy", "FILE"], "is a file, a policy is a folder; for one that the paper's authors"),
        (["--policy", "FILE", "--backbone", "tiny-kosmos-2"], "say with --benchmark NAME, one,"),
        (
            ["--policy", "FILE", "--backbone", "x", "--benchmark", "tabletop", "calvin"],
            "say with --benchmark NAME, one,",
        ),
        (["--policy", "FOLDER"], "is no policy's folder: it has neither model.safetensors"),
        (["--policy", "RUN", "--benchmark", "libero_object"], "do not fit libero_object: rotation"),
        (["--policy", "RUN", "--benchmark", "tabeltop"], "Did you mean 'tabletop'"),
        (["--policy", "RUN", "--horizons", "9"], "the horizon is 1 to 4, not 9"),
        (["--policy", "RUN", "--tasks", "rech"], "Did you mean 'reach'"),
        (["--policy", "ws://127.0.0.1:9"], "say with --benchmark"),
        (["--policy", "ws://127.0.0.1:9", "--benchmark", "tabletop"], "no policy server answers"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_starts(
    trained, tmp_path, monkeypatch, capsys, arguments, said
):
    folder, checkpoint = trained
    (tmp_path / "released.pt").touch()
    places = {
        "RUN": checkpoint.run,
        "FOLDER": str(tmp_path),
        "FILE": str(tmp_path / "released.pt"),
    }
    named = [reduce(lambda text, p: text.replace(*p), places.items(), a) for a in arguments]
    store = ["--store", str(folder / "store")]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *store, *named])
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started for it"))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / "evaluate.py"), run_name="__main__")
    assert ended.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 1
    assert said in errors[0]


def copied(folder, out, **changes):
    """An exported policy as `jobs/export_policy.py` writes it."""
    (out / "model.safetensors").write_bytes((folder / "policy.safetensors").read_bytes())
    told = json.loads((folder / "policy.json").read_text())
    (out / "config.json").write_text(json.dumps({"model_type": "vlm4vla", **told, **changes}))
    return out


def test_an_exported_folder_is_the_policy_it_came_from(trained, tmp_path):
    folder, checkpoint = trained
    store = open_store(str(tmp_path / "store"))
    exported = import_folder(store, copied(folder / "exported", tmp_path))
    assert exported.digest == checkpoint.digest
    assert import_folder(store, folder / "exported") == exported
    load_policy(artifacts.fetch_policy(store, exported))


def test_what_is_evaluated_can_be_served(trained, tmp_path):
    folder, checkpoint = trained
    (tmp_path / "out").mkdir()
    exported = copied(folder / "exported", tmp_path / "out")
    serve = runpy.run_path(str(ROOT / "jobs" / "serve_policy.py"), run_name="imported")["trained"]
    for name in (checkpoint.run, f"{checkpoint.run}@0", str(exported), str(folder / "exported")):
        policy, identity = serve(name, str(folder / "store"))
        assert (policy.row.name, identity) == ("tiny-paligemma-1", checkpoint.digest)
    store = open_store(str(folder / "store"))
    with pytest.raises(ValueError, match="Did you mean"):
        policy_files(f"{checkpoint.run}x", store)
    with pytest.raises(FileNotFoundError, match="is no policy's folder"):
        policy_files(str(tmp_path), store)
    artifacts.complete_policy(store, "two", 1, checkpoint.digest)
    artifacts.complete_policy(store, "two", 2, checkpoint.digest)
    with pytest.raises(ValueError, match="two@all is 2 policies: name one as two@STEP"):
        policy_files("two@all", store)


def test_policies_of_the_official_profile_are_played_as_the_released_evaluator_does(
    trained, tmp_path
):
    """And their scores say so, at every horizon."""
    folder, _ = trained
    told = json.loads((folder / "exported" / "policy.json").read_text())
    changes = {
        "run": {**told["run"], "profile": "official"},
        "action_spec": asdict(benchmark("simpler").action_spec),
    }
    store, served = open_store(str(tmp_path / "store")), Served("e", "observation", "")
    (tmp_path / "made").mkdir()
    made = copied(folder / "exported", tmp_path / "made", **changes)
    [found] = candidates(str(made), ["simpler"], store, served)
    assert found.row.success_rule == "last_step"
    scoring = Scoring(store, CLUSTERS["laptop"], "", print)
    scoring.fingerprints["simpler"] = "print"
    wanted = scoring._result(found, 2, found.row.tasks, None, Plan()).wanted
    assert (wanted.benchmark, wanted.cell().profile) == (found.row, "official")


def test_the_same_weights_with_another_description_are_refused(trained, tmp_path):
    folder, _ = trained
    store = open_store(str(tmp_path / "store"))
    import_folder(store, folder / "exported")
    with pytest.raises(ValueError, match=r"same weights as import-.*, described otherwise"):
        import_folder(store, copied(folder / "exported", tmp_path, chunk=3))


def test_a_released_file_becomes_a_policy(tmp_path):
    policy = fresh("tiny-kosmos-2", seed=5)
    theirs = {released_name("kosmos2", n): t.clone() for n, t in policy.state_dict().items()}
    torch.save({"state_dict": theirs}, tmp_path / "released.pt")
    row, source = benchmark("libero_object"), tmp_path / "released.pt"
    with pytest.raises(ValueError, match="--statistics"):
        released_policy("tiny-kosmos-2", row, source, tmp_path / "out", None)
    columns = {name: [0.5] * 7 for name in ("q01", "q99", "mean", "std", "min", "max")}
    (tmp_path / "statistics.json").write_text(json.dumps({"libero": {"action": columns}}))
    statistics = tmp_path / "statistics.json"
    released_policy("tiny-kosmos-2", row, source, tmp_path / "out", statistics)
    store = open_store(str(tmp_path / "store"))
    [found] = candidates(str(tmp_path / "out"), None, store, Served("e", "observation", ""))
    assert (found.row.name, found.chunk, found.profile) == ("libero_object", 4, "official")
    loaded = load_policy(tmp_path / "out")
    assert loaded.normaliser.kind == "quantile+clip65"
    assert torch.equal(loaded.query, policy.query)


def test_help_is_there_at_once():
    code = "import sys; sys.argv = ['evaluate.py', '--help']; import runpy\n"
    code += "try: runpy.run_path('jobs/evaluate.py', run_name='__main__')\n"
    code += "except SystemExit: pass\n"
    code += "print(sorted({'torch', 'ray', 'transformers', 'av'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.strip().splitlines()[-1] == "[]"
    said = " ".join(out.stdout.split())
    assert "RUN@STEP or RUN@all of the store, an exported FOLDER, hf:ORG/NAME" in said
    assert "those, with wrist view and state" in said
