"""The cluster launcher's file, the Slurm script and the images, as far as no cloud is needed."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml
from vla_platform.cluster import CLUSTERS

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
IMAGES = sorted((INFRA / "images").glob("*.Dockerfile"))
SIMULATORS = ("libero", "calvin", "simpler")


def launcher():
    return yaml.safe_load((INFRA / "ray-cluster.yaml").read_text())


def schema():
    ray = Path(importlib.util.find_spec("ray").submodule_search_locations[0])
    return json.loads((ray / "autoscaler" / "ray-schema.json").read_text())


def test_the_launchers_file_is_what_ray_reads():
    jsonschema.validate(launcher(), schema())


def misspelt(found):
    found["max_worker"] = found.pop("max_workers")


def no_provider(found):
    del found["provider"]["type"]


def text_for_a_number(found):
    found["available_node_types"]["training"]["min_workers"] = "one"


def unknown_field_of_a_node(found):
    found["available_node_types"]["simulators"]["max_wokers"] = 3


@pytest.mark.parametrize(
    "spoil", [misspelt, no_provider, text_for_a_number, unknown_field_of_a_node]
)
def test_a_typo_in_it_is_caught(spoil):
    found = launcher()
    spoil(found)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, schema())


def test_the_launchers_nodes_suit_the_cluster():
    found, cluster = launcher(), CLUSTERS["cluster"]
    types = found["available_node_types"]
    assert found["head_node_type"] in types
    assert types["head"]["resources"]["CPU"] == 0
    assert found["max_workers"] == sum(t.get("max_workers", 0) for t in types.values())
    training = types["training"]["resources"]
    for preset in CLUSTERS.values():
        assert training["CPU"] >= training["GPU"] * preset.cpus_per_worker
    assert types["simulators"]["max_workers"] == cluster.hosts
    assert "--env NVIDIA_VISIBLE_DEVICES=all" in found["docker"]["run_options"]
    commands = found["head_start_ray_commands"] + found["worker_start_ray_commands"]
    starts = [command for command in commands if "ray start" in command]
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_all_ways_onto_machines_use_one_version_of_the_images():
    texts = [path.read_text() for path in INFRA.rglob("*") if path.is_file()]
    tags = {tag for text in texts for tag in re.findall(r"vla-[a-z]+:(\d[\w.]*)", text)}
    tags |= {tag for text in texts for tag in re.findall(r"newTag: (\S+)", text)}
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert tags == {re.search(r'^version = "(.+)"', pyproject, re.M).group(1)}


def instructions(path):
    """(instruction, rest) of a Dockerfile, continued lines joined and comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            yield word, rest


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_images_are_staged_pinned_unprivileged_and_checked(path):
    found = list(instructions(path))
    assert [word for word, _ in found].count("FROM") == 2
    users = [rest for word, rest in found if word == "USER"]
    assert users[-1] == "1000:1000"
    assert [word for word, _ in found].index("HEALTHCHECK")
    assert "preflight" in next(rest for word, rest in found if word == "HEALTHCHECK")
    bases = [rest for word, rest in found if word == "ARG" and "=" in rest]
    for base in bases:
        if base.startswith(("PYTHON_IMAGE", "PLATFORM")):
            assert re.fullmatch(r"\w+=[\w./-]+:\d[\w.-]+", base), f"{base} is not pinned"
    installs = [rest for _, rest in found if "pip install" in rest]
    assert all(
        "-c constraints.txt" in part for rest in installs for part in rest.split("pip install")[1:]
    )


def test_the_platforms_image_has_what_rays_launcher_and_kuberay_call_in_it():
    """ray.autoscaler's DockerCommandRunner copies by rsync, and a head reaches workers by ssh."""
    found = list(instructions(INFRA / "images" / "platform.Dockerfile"))
    installs = [rest for word, rest in found if word == "RUN" and "apt-get install" in rest]
    assert {"openssh-client", "rsync", "wget", "tini", "g++"} <= set(installs[-1].split())


def test_what_an_image_copies_exists_and_holds_every_simulator():
    bake = (INFRA / "images" / "docker-bake.hcl").read_text()
    assert json.loads(re.search(r"simulator = (\[.*?\])", bake).group(1)) == list(SIMULATORS)
    study = re.search(r'target "study" {.*?SIMULATORS = "(.*?)"', bake, re.S).group(1)
    assert study.split() == list(SIMULATORS)
    for name in SIMULATORS:
        for kind in ("requirements", "system"):
            assert (INFRA / "simulators" / f"{kind}-{name}.txt").exists()
    for path in IMAGES:
        for word, rest in instructions(path):
            if word == "COPY" and not rest.startswith("--from"):
                assert all((ROOT / name).exists() for name in rest.split()[:-1])


def test_nothing_secret_reaches_an_image():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".git", ".venv", "*.env", "*.pem", "ray-token*"} <= set(ignored)


def test_the_slurm_script_says_what_is_missing(tmp_path):
    script = INFRA / "slurm" / "sweep.sbatch"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    out = subprocess.run(
        ["bash", script, "jobs/x.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert out.returncode == 2
    assert "make setup" in out.stderr
    out = subprocess.run(["bash", script], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 2
    assert "which job" in out.stderr
