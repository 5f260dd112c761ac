"""What Prometheus sees of a running pool, scraped from Ray's own metrics agent."""

import re
import time
import urllib.request
import uuid
from collections import Counter
from dataclasses import replace

import pytest
from vla_platform import evaluation, metrics
from vla_platform.assignments import PoolError, Tally
from vla_platform.candidates import Served, candidates
from vla_platform.cluster import CLUSTERS, Limits, Needs
from vla_platform.evaluation import Wanted
from vla_platform.ledger import Ledger
from vla_platform.progress import Meter
from vla_platform.rollouts import Pool
from vla_platform.store import open_store

from tests.vla_platform.test_remote import server

CLUSTER = replace(CLUSTERS["laptop"], hosts=1, slots=2)


def scrape():
    """name -> [(labels, value)] of our metrics, over all nodes."""
    import ray

    found = {}
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for line in urllib.request.urlopen(url, timeout=5).read().decode().splitlines():
            match = re.fullmatch(r"ray_(vla_\w+)\{(.*)\} (\S+)", line)
            if match:
                labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
                found.setdefault(match[1], []).append((labels, float(match[3])))
    return found


def totals(found, before=None):
    """Sums by name, of episodes by outcome too; without what other pools did `before`."""
    sums = Counter()
    for name, series in found.items():
        for labels, value in series:
            sums[name] += value
            sums[labels.get("outcome", "")] += value * (name == "vla_episodes_total")
    return sums - (before or Counter())


def scraped(ready, seconds=40):
    """The first scrape of which `ready` is true: Ray's workers report every ten seconds."""
    deadline = time.monotonic() + seconds
    while not ready(found := scrape()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def settled():
    """Sums once all that earlier pools of this process counted has arrived at the agent."""
    mark = uuid.uuid4().hex
    metrics.count("vla_stored_bytes_total", 1, kind=mark)

    def arrived(found):
        return any(labels["kind"] == mark for labels, _ in found.get("vla_stored_bytes_total", ()))

    found = scraped(arrived)
    assert arrived(found)
    return totals(found)


def test_a_scrape_of_a_running_pool_tells_what_it_does(ray_cluster, tmp_path):
    store = open_store(str(tmp_path))
    ledger, before = Ledger(store), settled()
    with server("declare") as url, Pool(store, None, CLUSTER) as pool:
        [found] = candidates(url, ["tabletop"], store, Served("e", "observation", ""))
        fingerprint = evaluation.environment(ledger, found.row)
        wanted = Wanted(found.policy, found.row, 4, fingerprint, ("reach",), 5)
        wrong = replace(wanted, fingerprint="0" * 64, trials=1)
        tally = evaluation.play(ledger, [wanted, wrong], lambda: pool, lambda tally: None)
        assert (tally.done, len(tally.errors)) == (5, 1)

        def complete(found):
            done = totals(found, before)
            hosts = done["vla_inference_seconds_count"] and "vla_queue_episodes" in found
            return hosts and done["error"] and done["vla_episodes_total"] > done["error"]

        seen = scraped(complete)
    played = totals(seen, before)
    assert (played["error"], played["vla_episodes_total"]) == (1, 6)
    assert played["vla_env_steps_total"] == tally.steps
    assert played["vla_inference_seconds_count"] >= 5
    assert played["vla_stored_bytes_total"] > 5 * 1000
    assert {labels["state"] for labels, _ in seen["vla_queue_episodes"]} == {"waiting", "running"}
    assert {"vla_rollout_hosts", "vla_episode_seconds_count"} <= set(seen)


def test_a_host_that_no_node_can_hold_is_said_with_the_numbers(ray_cluster, tmp_path):
    store = open_store(str(tmp_path))
    huge = {"tabletop": Needs(cores=1000, memory_mib=64)}
    cluster = replace(CLUSTER, needs=huge, simulator_cores=1000, limits=Limits(place=1.0))
    with server("declare") as url, Pool(store, None, cluster) as pool:
        [found] = candidates(url, ["tabletop"], store, Served("e", "observation", ""))
        wanted = Wanted(found.policy, found.row, 4, "f", ("reach",), 1)
        with pytest.raises(PoolError, match=r"takes 1e\+03 CPU.*the nodes have 4 CPU"):
            pool.run(evaluation.missing(Ledger(store), [wanted]))


def test_names_units_and_labels_are_of_one_scheme():
    for name, about in metrics.METRICS.items():
        assert re.fullmatch(r"vla_[a-z_]+", name)
        assert name.endswith("_total") == (about.kind == "counter")
        assert (about.kind == "histogram") == bool(about.bounds)
        assert set(about.labels) <= {"benchmark", "outcome", "state", "cause", "kind", "verb"}


def test_a_line_of_progress_says_everything(capsys, monkeypatch):
    tally = Tally(total=20, done=9, running=3, successes=4, pending=2)
    tally.tasks = {"reach": [4, 5], "a_very_long_name_of_a_task_on_the_table": [0, 4]}
    tally.errors = [(None, "it broke")]
    meter = Meter("episodes")
    meter.began -= 60
    meter.said -= 60
    meter.tally(tally)
    line = capsys.readouterr().out.strip()
    assert re.fullmatch(
        r"episodes: 10/20 60s, ~60s left, 9 done, 3 running, 1 errors, 7 missing, 10 episodes/min,"
        r" 2 hosts wait for a place; …_of_a_task_on_the_table 0/4, reach 4/5",
        line,
    ), line
