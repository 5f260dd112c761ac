"""Boards and alerts: built by the SDK, asking for metrics that exist, and answered by a real
Prometheus that scrapes a real Ray session."""

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml
from vla_platform.curves import GAUGES
from vla_platform.metrics import METRICS

from dashboards.grafana import BOARDS, FOLDER, build
from tests.seaweed import free_ports

ROOT = FOLDER.parents[1]
RULES = [ROOT / "dashboards" / "rules.yml", ROOT / "dashboards" / "alerts.yml"]
LABELS = {f"ray_{name}": set(about.labels) for name, about in METRICS.items()}
LABELS |= {f"ray_{name}": {"run"} for name, _ in GAUGES.values()}
PARTS = re.compile(r"_(bucket|sum|count)$")
needs_prometheus = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs Debian's prometheus: apt-get install prometheus"
)


def rules():
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def expressions():
    """Where a query stands, and the query."""
    for name, board in BOARDS.items():
        for panel in board.panels:
            for query in panel.queries.values():
                yield f"{name}: {panel.title}", query
    for rule in rules():
        yield rule.get("record") or rule["alert"], rule["expr"]


@pytest.mark.parametrize("name", BOARDS)
def test_the_boards_are_what_the_sdk_builds(name):
    stored = (FOLDER / f"{name}.json").read_text()
    assert stored == build(name), "run python -m dashboards.grafana"
    board = json.loads(stored)
    assert len(board["panels"]) == len(BOARDS[name].panels)
    places = [tuple(panel["gridPos"][side] for side in "xy") for panel in board["panels"]]
    assert len(set(places)) == len(places)
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in board["panels"])


def test_queries_ask_for_metrics_and_labels_that_exist():
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    seen = set()
    for where, query in expressions():
        for metric in re.findall(r"ray_vla_\w+", query):
            name = metric if metric in LABELS else PARTS.sub("", metric)
            assert name in LABELS, f"{where} asks for {metric}"
            seen.add(name)
        for metric, matchers in re.findall(r"(ray_vla_\w+)\{([^}]*)\}", query):
            name = metric if metric in LABELS else PARTS.sub("", metric)
            asked = set(re.findall(r"(\w+)(?:=~|!=|=)", matchers))
            assert asked <= LABELS[name], f"{where} asks for {asked - LABELS[name]} of {metric}"
        for metric in re.findall(r"vla:[\w:]+", query):
            assert metric in recorded, f"{where} asks for {metric}"
    assert seen == set(LABELS), "every metric stands on a board or in a rule"


@needs_prometheus
def test_rules_are_sound_and_every_alert_fires():
    for command in (["check", "rules", *map(str, RULES)], ["test", "rules", "alerts_test.yml"]):
        out = subprocess.run(
            ["promtool", *command], cwd=Path(__file__).parent, capture_output=True, text=True
        )
        assert out.returncode == 0, out.stdout + out.stderr
    cases = yaml.safe_load((Path(__file__).parent / "alerts_test.yml").read_text())["tests"]
    fired = {
        case["alertname"]
        for group in cases
        for case in group["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in rules() if "alert" in rule}


# A real Prometheus beside a real Ray


def record_everything(seconds: float) -> None:
    """As a worker would: each metric of the platform once a second."""
    from ray.util.metrics import Gauge
    from vla_platform import metrics

    act = {"counter": metrics.count, "gauge": metrics.show, "histogram": metrics.observe}
    gauges = [Gauge(name, text, tag_keys=("run",)) for name, text in GAUGES.values()]
    usual = {"outcome": "success", "state": "running", "cause": "worn", "kind": "row"}
    usual |= {"benchmark": "tabletop", "verb": "put"}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for name, about in metrics.METRICS.items():
            labels = {label: usual[label] for label in about.labels}
            act[about.kind](name, 2.0, **labels)
        metrics.count("vla_episodes_total", 1, benchmark="tabletop", outcome="error")
        for gauge in gauges:
            gauge.set(0.5, tags={"run": "a"})
        time.sleep(1)


def ask(port: int, query: str) -> list:
    text = query.replace("$__rate_interval", "1m")
    text = text.replace("$benchmark", ".*").replace("$run", ".*")
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": text})
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)["data"]["result"]


@pytest.fixture
def prometheus(tmp_path, ray_cluster):
    import ray

    (port,) = free_ports(1)
    config = {
        "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
        "rule_files": [str(path) for path in RULES],
        "scrape_configs": [
            {
                "job_name": "ray",
                "static_configs": [
                    {"targets": [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"]}
                    for node in ray.nodes()
                ],
            }
        ],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [shutil.which("prometheus"), f"--config.file={tmp_path / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={tmp_path / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    yield port
    process.kill()
    process.wait()


@pytest.mark.full
@needs_prometheus
def test_every_panel_is_answered_by_a_running_session(prometheus):
    import ray

    task = ray.remote(num_cpus=0.1)(record_everything).remote(70)
    left = {f"{where} {query}": query for where, query in expressions() if ":" in where}
    deadline = time.monotonic() + 90
    while left and time.monotonic() < deadline:
        time.sleep(3)
        answered = {}
        for where, query in left.items():
            try:
                answered[where] = bool(ask(prometheus, query))
            except OSError:  # it is still starting
                answered[where] = False
        left = {where: query for where, query in left.items() if not answered[where]}
    ray.get(task)
    assert not left, "no data for " + "; ".join(left)
