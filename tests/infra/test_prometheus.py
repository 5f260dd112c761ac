"""The scrape config that services are started with, as Prometheus itself reads it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from infra.services import RULES, Services, prometheus_config

pytestmark = pytest.mark.skipif(not shutil.which("promtool"), reason="needs Debian's prometheus")


def check(path):
    return subprocess.run(["promtool", "check", "config", path], capture_output=True, text=True)


def test_prometheus_accepts_the_config_with_our_rules(tmp_path):
    config = tmp_path / "prometheus.yml"
    config.write_text(prometheus_config(Services(tmp_path, 21_000)))
    out = check(config)
    assert out.returncode == 0, out.stdout + out.stderr
    for rules in RULES.glob("*.yml"):
        assert str(rules) in out.stdout, "a rule file that Prometheus does not load"
    assert "127.0.0.1:21090" in config.read_text()


def test_the_committed_file_is_valid_and_a_typo_in_it_is_not(tmp_path):
    source = Path(__file__).resolve().parents[2] / "infra" / "prometheus" / "prometheus.yml"
    assert check(source).returncode == 0
    (tmp_path / "p.yml").write_text(source.read_text().replace("scrape_interval", "scrap_interval"))
    assert check(tmp_path / "p.yml").returncode != 0
