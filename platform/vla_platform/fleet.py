"""The rollout hosts of a pool: how many, of which simulator, and on which nodes.

A host is asked for as soon as there is work for it, and waits until Ray finds its cores, memory
and rendering slots free: a host that waits is what makes Ray's autoscaler add nodes. Hosts
without work give their place back, and hosts on a node that is drained get no more work.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import ray
from ray.actor import ActorHandle

from vla_platform.waiting import Demand

log = logging.getLogger(__name__)

IDLE_S = 60.0
"""A host without work is kept so long in case more comes."""


@dataclass(eq=False)
class Member:
    """A host. starting: the reference that says it runs; load: episodes in flight there."""

    actor: ActorHandle[Any]
    kind: str
    slots: int
    starting: Any
    node: str = ""
    load: int = 0
    idle_since: float = field(default_factory=time.monotonic)
    leaving: bool = False

    @property
    def free(self) -> bool:
        return self.starting is None and not self.leaving and self.load < self.slots


class Fleet:
    """Hosts by simulator. make: starts one for a simulator; slots: how many it will hold."""

    def __init__(
        self, make: Callable[[str], Member], slots: Callable[[str], int], most: int
    ) -> None:
        self.make, self.slots, self.most = make, slots, most
        self.members: list[Member] = []

    def resize(self, demand: Mapping[str, Demand]) -> None:
        """Ask for the hosts that the work needs, and let go of those it does not."""
        wanted = share(demand, self.slots, self.most)
        crowded = any(member.starting is not None for member in self.members)
        for kind in dict.fromkeys([*wanted, *(member.kind for member in self.members)]):
            staying = [m for m in self.members if m.kind == kind and not m.leaving]
            for _ in range(wanted.get(kind, 0) - len(staying)):
                self.members.append(self.make(kind))
            spare = len(staying) - wanted.get(kind, 0)
            for member in list(_spare(staying, crowded or len(wanted) > 1))[: max(0, spare)]:
                self.remove(member)

    def best(self, kind: str) -> Member | None:
        """The host of the kind with the least to do, if one has a slot free."""
        free = [member for member in self.members if member.kind == kind and member.free]
        return min(free, key=lambda member: member.load, default=None)

    def starting(self) -> dict[Any, Member]:
        return {m.starting: m for m in self.members if m.starting is not None}

    def running(self) -> list[Member]:
        return [member for member in self.members if member.starting is None]

    def remove(self, member: Member) -> None:
        """End a host at once; its simulators end with it and hold nothing that needs saving."""
        if member in self.members:
            self.members.remove(member)
            ray.kill(member.actor)

    def leave(self, nodes: Iterable[str]) -> None:
        """Give no more work to hosts on these nodes; end those that have none."""
        drained = set(nodes)
        for member in list(self.members):
            if member.node in drained and not member.leaving:
                log.warning("node %s is drained: its host gets no more work", member.node[:8])
                member.leaving = True
            if member.leaving and not member.load:
                self.remove(member)

    def close(self, gently: bool) -> None:
        """End all; gently: let them end their simulators first, for at most ten seconds."""
        running: list[Any] = [m.actor.close.remote() for m in self.running() if gently]
        if running:
            ray.wait(running, num_returns=len(running), timeout=10)
        for member in list(self.members):
            self.remove(member)


def _spare(members: Iterable[Member], crowded: bool) -> Iterator[Member]:
    """Hosts that may go: those without a place yet, then idle ones whose place is wanted."""
    members = list(members)
    yield from (member for member in members if member.starting is not None)
    now = time.monotonic()
    for member in members:
        idle = member.starting is None and not member.load
        if idle and (crowded or now - member.idle_since > IDLE_S):
            yield member


def share(demand: Mapping[str, Demand], slots: Callable[[str], int], most: int) -> dict[str, int]:
    """Hosts per simulator: no more than it has episodes for, the most work first."""
    needed = {kind: ceil(work.episodes / slots(kind)) for kind, work in demand.items()}
    given = dict.fromkeys(demand, 0)
    while sum(given.values()) < most:
        short = [kind for kind in demand if given[kind] < needed[kind]]
        if not short:
            break
        given[max(short, key=lambda k: demand[k].steps / slots(k) / (given[k] + 1))] += 1
    return given


def draining() -> set[str]:
    """Hex ids of nodes that were told to go."""
    # Ray has no public call for this; its own Train and Serve ask the same object.
    return set(ray._private.state.state.get_draining_nodes())


def nodes() -> list[dict[str, float]]:
    """Resources of every node that is there."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
