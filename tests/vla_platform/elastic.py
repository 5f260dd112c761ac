"""A driver on a cluster of several nodes that come and go while it plays; prints what it saw.

    python -m tests.vla_platform.elastic SCENARIO STORE URL

Scenarios: grow (a node is added), shrink (a node is killed), drain (a node is told to go).
Nodes are Ray's own, all on this machine; each has room for one simulator.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import ray
from ray.cluster_utils import Cluster as Nodes
from vla_platform import evaluation
from vla_platform.candidates import Served, candidates
from vla_platform.cluster import CLUSTERS, Needs
from vla_platform.evaluation import Wanted
from vla_platform.ledger import Ledger
from vla_platform.rollouts import Pool, Round
from vla_platform.store import open_store

ONE_EACH = replace(
    CLUSTERS["laptop"],
    hosts=4,
    slots=1,
    needs={"tabletop": Needs(cores=1, memory_mib=64, render_slots=0)},
)


def node(nodes: Nodes):
    return nodes.add_node(num_cpus=1, object_store_memory=80 << 20)


def drain(nodes: Nodes, victim) -> None:
    from ray._raylet import GcsClient

    reason, soon = 2, int(time.time() * 1000) + 60_000  # 2: pre-emption
    GcsClient(address=nodes.address).drain_node(victim.node_id, reason, "a test", soon)


CHANGED_AT = 4
"""Episodes after which a node comes or goes."""
EPISODES = 60
"""Enough for a node that joins after a few of them to get its share."""


def main(scenario: str, url: str, server: str) -> None:
    store = open_store(url)
    [found] = candidates(server, ["tabletop"], store, Served("e", "observation", ""))
    ledger = Ledger(store)
    wanted = Wanted(
        found.policy, found.row, 2, evaluation.environment(ledger, found.row), ("reach",), EPISODES
    )
    # Ray notes a cluster's address there, wherever its own folder is, but does not make it.
    Path(tempfile.gettempdir(), "ray").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="el-", dir="/tmp", ignore_cleanup_errors=True) as name:
        nodes = Nodes(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "temp_dir": name, "include_dashboard": False},
            connect=True,
        )
        try:
            print(json.dumps(play(scenario, nodes, store, wanted)), flush=True)  # noqa: T201
        finally:
            ray.shutdown()
            nodes.shutdown()


def play(scenario: str, nodes: Nodes, store, wanted: Wanted) -> dict:
    workers = [node(nodes) for _ in range(1 if scenario == "grow" else 2)]
    seen = {"done": 0, "most": 0, "last": 0, "waits": False, "changed": False}
    change = {
        "grow": lambda: node(nodes),
        "shrink": lambda: nodes.remove_node(workers[1], allow_graceful=False),
        "drain": lambda: drain(nodes, workers[1]),
    }[scenario]

    def progress(tally) -> None:
        # Here and not beside it: Ray starts nodes from the main thread alone.
        if tally.done >= CHANGED_AT and not seen["changed"]:
            seen["changed"] = True
            change()
        seen.update(done=tally.done, most=max(seen["most"], tally.hosts), last=tally.hosts)
        seen["waits"] = seen["waits"] or tally.pending > 0

    with Pool(store, None, ONE_EACH) as pool:
        left = evaluation.missing(Ledger(store), [wanted])
        played = Round(pool, left, progress)
        tally = played.play()
    errors = [reason for _, reason in tally.errors]
    lost = sum(played.deaths.values())
    return {**seen, "errors": errors, "lost": lost, "done": tally.done}


if __name__ == "__main__":
    main(*sys.argv[1:])
