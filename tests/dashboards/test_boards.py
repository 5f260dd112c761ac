"""Boards and alerts: built by the SDK, asking for metrics that exist, and answered by a real
Prometheus that scrapes a laptop sweep."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml
from vla_platform.curves import GAUGES
from vla_platform.metrics import METRICS

from dashboards.grafana import BOARDS, FOLDER, build
from infra.services import Services
from tests.infra.conftest import free_base

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


def panels():
    """Where a query stands, and the query."""
    for name, board in BOARDS.items():
        for panel in board.panels:
            for legend, query in panel.queries.items():
                yield f"{name}: {panel.title}: {legend}", query


def expressions():
    yield from panels()
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


# The shipped Prometheus beside a sweep at work


def ask(address: str, query: str) -> list:
    """The series that have a value; of nothing divided by nothing there is none."""
    text = query.replace("$__rate_interval", "1m")
    text = text.replace("$benchmark", ".*").replace("$run", ".*")
    url = f"{address}/api/v1/query?" + urllib.parse.urlencode({"query": text})
    with urllib.request.urlopen(url, timeout=10) as answer:
        series = json.load(answer)["data"]["result"]
    return [one for one in series if one["value"][1] != "NaN"]


@pytest.fixture
def services(tmp_path):
    started = Services(tmp_path / "services", free_base())
    started.start()
    yield started
    started.stop()


@pytest.mark.full
@needs_prometheus
def test_every_panel_is_answered_while_a_laptop_sweep_runs(services, tmp_path):
    """Each query has data at some moment: trainings and rollouts take turns on a laptop."""
    head = f"127.0.0.1:{services.base + 79}"
    environment = {**os.environ, **services.environment(), "RAY_ADDRESS": head}
    command = [sys.executable, "jobs/backbone_sweep.py", "--preset", "laptop"]
    command += ["--backbones", "tiny-paligemma-1"]
    queries = dict(panels())
    seen = dict.fromkeys(queries, 0)
    with open(tmp_path / "log", "w") as log:
        sweep = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            while sweep.poll() is None:
                time.sleep(3)
                for where, query in queries.items():
                    seen[where] = max(seen[where], len(ask(services.prometheus, query)))
        finally:
            sweep.terminate()
            sweep.wait()
    assert sweep.returncode == 0, (tmp_path / "log").read_text()
    (tmp_path / "series.json").write_text(json.dumps(seen, indent=1))
    assert all(seen.values()), [where for where, series in seen.items() if not series]
