"""KubeRay manifests as kustomize renders them: fields that exist, and promises that hold.

Kubernetes' own kinds, pod templates among them, are checked against its schemas; what belongs to
RayCluster and RayJob against the fields we use (its full definitions are KubeRay's to ship).
"""

import copy
import importlib.metadata
import shutil
import subprocess
from functools import cache
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from vla_platform import room
from vla_platform.cluster import CLUSTERS

KUBERAY = Path(__file__).resolve().parents[2] / "infra" / "kuberay"
OVERLAYS = ("overlays/gpu-1x8", "overlays/gpu-4x8", "overlays/cpu", "job")
KUBERNETES = "1.33"
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
SIMULATORS = 8
"""Of LIBERO on a node of the simulators' group, as its requests say."""

pytestmark = pytest.mark.skipif(
    not (shutil.which("kubectl") or shutil.which("kustomize")), reason="needs kubectl or kustomize"
)


def fields(required=(), **properties):
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


ANY, TEXT, COUNT = {}, {"type": "string"}, {"type": "integer", "minimum": 0}
PARAMETERS = {"type": "object", "additionalProperties": TEXT}
GROUP = {"rayStartParams": PARAMETERS, "template": ANY}
WORKERS = {"groupName": TEXT, "replicas": COUNT, "minReplicas": COUNT, "maxReplicas": COUNT}
OURS = {
    "RayCluster": fields(
        ("rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"),
        rayVersion=TEXT,
        authOptions=fields(("mode", "secretName"), mode={"const": "token"}, secretName=TEXT),
        enableInTreeAutoscaling={"type": "boolean"},
        autoscalerOptions=fields(
            version={"const": "v2"},
            idleTimeoutSeconds=COUNT,
            securityContext=ANY,
            resources=ANY,
        ),
        headGroupSpec=fields(tuple(GROUP), **GROUP),
        workerGroupSpecs={
            "type": "array",
            "items": fields((*WORKERS, "template"), **WORKERS, **GROUP),
        },
    ),
    "RayJob": fields(
        ("clusterSelector", "entrypoint"),
        clusterSelector=PARAMETERS,
        entrypoint=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode"]},
        submitterPodTemplate=ANY,
    ),
}


@cache
def rendered(folder):
    tool = ["kubectl", "kustomize"] if shutil.which("kubectl") else ["kustomize", "build"]
    out = subprocess.run([*tool, str(KUBERAY / folder)], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return tuple(yaml.safe_load_all(out.stdout))


def documents(folder):
    return copy.deepcopy(rendered(folder))


def of_kind(kind, found):
    return next(document for document in found if document["kind"] == kind)


def templates(document):
    """Every pod template of a RayCluster or RayJob."""
    spec = document["spec"]
    if document["kind"] == "RayJob":
        return [spec["submitterPodTemplate"]]
    return [group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def problems(document):
    """What is wrong with a rendered document; [] when nothing is."""
    try:
        if document["kind"] not in OURS:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
            return []
        jsonschema.validate(document["spec"], OURS[document["kind"]])
        for template in templates(document):
            pod = {"apiVersion": "v1", "kind": "Pod", **template}
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    except (kubernetes_validate.ValidationError, jsonschema.ValidationError) as error:
        return [error.message]
    return []


def containers(found):
    for document in found:
        if document["kind"] in OURS:
            for template in templates(document):
                yield template["spec"], template["spec"]["containers"][0]


@pytest.mark.parametrize("folder", OVERLAYS)
def test_every_overlay_renders_fields_that_exist(folder):
    found = documents(folder)
    assert found
    assert [problem for document in found for problem in problems(document)] == []


TYPOS = [
    ("RayCluster", ("spec", "workerGroupSpecs", 0), "groupName", "gruopName"),
    ("RayCluster", ("spec", "workerGroupSpecs", 1), "maxReplicas", "maxReplica"),
    ("RayCluster", ("spec",), "authOptions", "authOption"),
    ("RayCluster", ("spec", "headGroupSpec"), "rayStartParams", "rayStartParam"),
    ("RayCluster", ("spec", "headGroupSpec", "template", "spec"), "securityContext", "security"),
    (
        "RayCluster",
        ("spec", "workerGroupSpecs", 1, "template", "spec"),
        "terminationGracePeriodSeconds",
        "terminationGracePeriod",
    ),
    (
        "RayCluster",
        ("spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "resources"),
        "requests",
        "request",
    ),
    (
        "RayCluster",
        ("spec", "headGroupSpec", "template", "spec", "containers", 0, "envFrom", 0),
        "secretRef",
        "secretReference",
    ),
    ("PodDisruptionBudget", ("spec",), "maxUnavailable", "maxUnavailble"),
    ("NetworkPolicy", ("spec",), "ingress", "ingres"),
]


@pytest.mark.parametrize(("kind", "path", "name", "typo"), TYPOS, ids=[typo[3] for typo in TYPOS])
def test_a_typo_is_caught(kind, path, name, typo):
    document = of_kind(kind, documents("overlays/gpu-4x8"))
    place = document
    for step in path:
        place = place[step]
    place[typo] = place.pop(name)
    assert problems(document)


@pytest.mark.parametrize(("folder", "nodes"), [("gpu-1x8", 1), ("gpu-4x8", 4), ("cpu", 0)])
def test_overlays_have_the_gpus_of_their_names(folder, nodes):
    assert len(training_nodes(folder)) == nodes
    assert all(node["GPU"] == 8 for node in training_nodes(folder))


def training_nodes(folder):
    """Ray's resources of each."""
    groups = of_kind("RayCluster", documents(f"overlays/{folder}"))["spec"]["workerGroupSpecs"]
    found = [group for group in groups if group["groupName"] == "training"]
    asked = [(g, g["template"]["spec"]["containers"][0]["resources"]["requests"]) for g in found]
    names = {"CPU": "cpu", "GPU": "nvidia.com/gpu"}
    return [
        {name: float(requests[key]) for name, key in names.items()}
        for group, requests in asked
        for _ in range(group["replicas"])
    ]


ON = {"workstation": "gpu-1x8", "cluster": "gpu-1x8", "4x8-a100": "gpu-4x8"}
"""Preset -> the smallest overlay that has its GPUs."""


@pytest.mark.parametrize("preset", [name for name, c in CLUSTERS.items() if c.gpus_per_worker])
def test_a_preset_s_largest_training_fits_its_overlay_beside_rollouts(preset):
    """A study plays checkpoints while their training goes on: a replica must find a GPU free, and
    each node room for a host of simulators."""
    cluster, nodes = CLUSTERS[preset], training_nodes(ON[preset])
    beside = [{**node, "CPU": node["CPU"] - cluster.simulator_cores} for node in nodes]
    gpus = sum(node["GPU"] for node in nodes)
    assert room.workers(cluster, beside) == min(gpus, 8 * len(nodes))
    assert room.workers(cluster, beside) >= cluster.workers[1]
    assert cluster.training_gpus + cluster.replicas * cluster.gpu_share <= gpus


def test_ray_is_the_installed_version_and_asks_for_a_token():
    spec = of_kind("RayCluster", documents("overlays/gpu-1x8"))["spec"]
    assert spec["rayVersion"] == importlib.metadata.version("ray")
    assert spec["authOptions"]["mode"] == "token"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_a_simulator_node_holds_as_many_as_its_comment_says():
    groups = of_kind("RayCluster", documents("overlays/gpu-1x8"))["spec"]["workerGroupSpecs"]
    group = next(group for group in groups if group["groupName"] == "simulators")
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    spare = int(group["rayStartParams"]["object-store-memory"]) + 2 * UNITS["Gi"]
    memory = int(limits["memory"][:-2]) * UNITS[limits["memory"][-2:]] - spare
    node = {"CPU": float(limits["cpu"]), "memory": float(memory)}
    cluster = CLUSTERS["cluster"]
    assert cluster.slots_for("libero", [node]) == SIMULATORS
    assert cluster.fits("libero", SIMULATORS, node)
    assert (group["minReplicas"], group["maxReplicas"]) == (0, cluster.hosts)


@pytest.mark.parametrize("folder", OVERLAYS)
def test_secrets_come_by_reference_and_nothing_runs_as_root(folder):
    for spec, container in containers(documents(folder)):
        names = [entry["name"] for entry in container.get("env", []) if "value" in entry]
        assert not [name for name in names if "KEY" in name or "TOKEN" in name]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        tag = container["image"].rpartition(":")[2]
        assert tag[0].isdigit(), f"{container['image']} is not pinned"
    assert not [d for d in documents(folder) if d["kind"] == "Secret"]


def test_draining_ends_before_the_pod_is_killed():
    grace = CLUSTERS["cluster"].limits.grace
    for spec, container in containers(documents("overlays/gpu-4x8")):
        env = {entry["name"]: entry.get("value") for entry in container.get("env", [])}
        if drain := env.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"):
            assert grace < int(drain) < spec["terminationGracePeriodSeconds"]


def test_copies_end_before_their_volume_does():
    """A pod that fills its volume is evicted; unless told, a node counts its whole disk."""
    kept = {}
    for spec, container in containers(documents("overlays/gpu-4x8")):
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        env = {entry["name"]: entry.get("value") for entry in container.get("env", [])}
        if "cache" in volumes:
            size = volumes["cache"]["emptyDir"]["sizeLimit"]
            kept[size] = float(env["VLA_CACHE_GB"]) * 1e9
            assert kept[size] < 0.9 * int(size[:-2]) * UNITS[size[-2:]]
    assert len(kept) == 2, "both groups of workers"


@pytest.mark.parametrize("folder", OVERLAYS)
def test_the_image_of_all_nodes_and_jobs_is_named_once(tmp_path, folder):
    """Another registry, and one simulator instead of the study's three: one file changes."""
    shutil.copytree(KUBERAY, tmp_path / "kuberay")
    image = tmp_path / "kuberay" / "image" / "kustomization.yaml"
    text = image.read_text()
    assert text.count("registry.example.org/vla/vla-study") == 1
    image.write_text(text.replace("registry.example.org/vla/vla-study", "ghcr.io/lab/vla-calvin"))
    found = documents(tmp_path / "kuberay" / folder)
    assert {container["image"] for _, container in containers(found)} == {
        "ghcr.io/lab/vla-calvin:0.1.0"
    }
    assert "registry.example.org" not in yaml.safe_dump_all(found)


def test_the_study_s_image_is_one_that_is_built():
    (image,) = {container["image"] for _, container in containers(documents("job"))}
    bake = (KUBERAY.parent / "images" / "docker-bake.hcl").read_text()
    name = image.rpartition("/")[2].partition(":")[0]
    assert f'["${{REGISTRY}}{name}:${{VERSION}}"]' in bake
