"""Whether the nodes of a Ray cluster could hold a training, asked before one waits for ever."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from ray.util.placement_group import placement_group, remove_placement_group

from vla_platform import fleet
from vla_platform.assignments import PoolError
from vla_platform.cluster import Cluster, amounts

log = logging.getLogger(__name__)

ASK_S = 1.0
"""Between two looks at the nodes."""
Nodes = Sequence[Mapping[str, float]]


def require(cluster: Cluster) -> None:
    """Return once the nodes could hold the fewest workers that a training may have.

    PoolError when they still cannot after `limits.place` seconds, in which an autoscaler may add
    nodes. Nodes that are only full will do: Ray Train waits for what others occupy.
    """
    least = cluster.workers[0]
    if workers(cluster, fleet.nodes()) >= least:
        return
    log.warning("%s: waiting %.0f s for nodes", _lack(cluster, fleet.nodes()), cluster.limits.place)
    group = placement_group([cluster.worker] * least)  # what waits is what makes Ray add nodes
    deadline = time.monotonic() + cluster.limits.place
    try:
        while workers(cluster, nodes := fleet.nodes()) < least:
            if time.monotonic() > deadline:
                raise PoolError(
                    f"{_lack(cluster, nodes)}: add nodes, or ask for less by --workers MIN MAX "
                    "or another --preset"
                )
            time.sleep(ASK_S)
    finally:
        remove_placement_group(group)


def workers(cluster: Cluster, nodes: Nodes) -> int:
    """Training workers for which the nodes have room when nothing else is there."""
    return sum(_on(cluster.worker, node) for node in nodes)


def _on(worker: Mapping[str, float], node: Mapping[str, float]) -> int:
    """Of one node. A GPU that is shared holds one worker: two would be one to their library."""
    whole = {name: max(1.0, n) if name == "GPU" else n for name, n in worker.items()}
    return min(int(node.get(name, 0.0) / amount) for name, amount in whole.items())


def _lack(cluster: Cluster, nodes: Nodes) -> str:
    total = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    return (
        f"a training takes {cluster.workers[0]} workers at least, of {amounts(cluster.worker)} "
        f"each; the nodes have {amounts(total)} in all, room for {workers(cluster, nodes)}"
    )
