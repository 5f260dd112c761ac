"""The pool: rollout hosts and inference replicas, and the driver that keeps them busy.

Hosts commit episodes themselves; the driver only hands out keys, so it can die at any moment
and the next one runs just what is missing.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError

from vla_platform import fleet, metrics, preemption
from vla_platform.assignments import Assignment, PoolError, Tally
from vla_platform.cluster import Cluster, amounts
from vla_platform.fleet import Fleet, Member
from vla_platform.hosts import Host
from vla_platform.inference import LoadPolicy, start_replicas
from vla_platform.ledger import Ledger
from vla_platform.preemption import Notice, PreemptedError
from vla_platform.store import Store
from vla_platform.waiting import Waiting, without

__all__ = ["Pool", "PoolError", "Progress", "Tally"]

log = logging.getLogger(__name__)

HOST_DEATHS = 3
"""How often an episode may lose its host before it is an error."""
START_FAILURES = 5
"""Hosts in a row that may fail to start before the pool gives up."""
SETTLE_S = 5.0
"""How long the first hosts wait for each other, so that episodes are spread over all."""
WATCH_S = 2.0
"""How often Ray is asked for nodes that were told to go…"""
NODES_S = 10.0
"""…and for the sizes of those that are there."""
ANSI = re.compile(r"\x1b\[[\d;]*m")
"""Colours, which Ray gives to traces."""
Progress = Callable[[Tally], None]


class Pool:
    """Hosts and replicas on the cluster Ray is connected to; use as a context manager.

    load: makes a policy of a checkpoint's folder; None where all policies are remote.
    """

    def __init__(self, store: Store, load: LoadPolicy | None, cluster: Cluster) -> None:
        self.store, self.cluster = store, cluster
        self.replicas = (
            start_replicas(
                *(store, _on_gpu(load, cluster), cluster.batch),
                *(cluster.replicas, cluster.gpu_share, cluster.threads),
            )
            if load
            else []
        )
        self.started = 0
        self.asked, self.nodes = time.monotonic(), fleet.nodes()
        self.fleet = Fleet(self._member, self.slots, cluster.hosts)

    def slots(self, simulator: str) -> int:
        """Simulators of one host; nodes come and go, so Ray is asked now and then."""
        if time.monotonic() - self.asked > NODES_S:
            self.asked, self.nodes = time.monotonic(), fleet.nodes()
        return self.cluster.slots_for(simulator, self.nodes)

    def _member(self, simulator: str) -> Member:
        slots = self.slots(simulator)
        # No Ray-side restarts: a lost host's episodes are handed out again by the driver.
        actor: Any = ray.remote(Host).options(
            max_concurrency=slots + 2, **self.cluster.options(simulator, slots)
        )
        replica = self.replicas[self.started % len(self.replicas)] if self.replicas else None
        self.started += 1
        made = actor.remote(self.store, replica, slots, self.cluster.limits)
        return Member(made, simulator, slots, made.ready.remote())

    def run(self, assignments: Iterable[Assignment], progress: Progress | None = None) -> Tally:
        """Play every assignment; returns when each is committed or has become an error.

        PreemptedError after a notice to go, PoolError when no host can be had.
        """
        return Round(self, assignments, progress or (lambda tally: None)).play()

    def rest(self) -> None:
        """Give back the places of all hosts, for example to a training; the next run asks anew."""
        self.fleet.close(gently=True)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        self.fleet.close(gently=kind is None)
        for replica in self.replicas:
            ray.kill(replica)


def _on_gpu(load: LoadPolicy, cluster: Cluster) -> LoadPolicy:
    """A replica sees the GPUs of its node whether it has one or not, so it is told."""
    if not cluster.gpu_share:
        return load
    return partial(load, precision=cluster.answers_in, device="cuda")


class Round:
    """One run of a pool: what waits, what flies, and what became of the rest."""

    def __init__(self, pool: Pool, assignments: Iterable[Assignment], progress: Progress) -> None:
        self.pool, self.fleet, self.progress = pool, pool.fleet, progress
        self.limits = pool.cluster.limits
        self.waiting = Waiting(assignments)
        self.left = self.waiting.demand()
        self.flying: dict[Any, tuple[Member, Assignment]] = {}
        self.tally = Tally(total=len(self.waiting))
        self.ledger = Ledger(pool.store)
        self.deaths: Counter[str] = Counter()
        self.unstarted = 0
        self.watched = self.placed = time.monotonic()

    def play(self) -> Tally:
        with preemption.watch() as notice:
            self._gather_hosts()
            while self.waiting or self.flying:
                self._watch_nodes(notice)
                if notice.given:
                    self._stop(notice)
                self.fleet.resize(self.left)
                self._hand_out()
                self._collect(0.5)
                self._require_place()
        return self.tally

    def _gather_hosts(self) -> None:
        """Wait a little for the first hosts: the quickest would else begin everything."""
        self.fleet.resize(self.left)
        if starting := list(self.fleet.starting()):
            ray.wait(starting, num_returns=len(starting), timeout=SETTLE_S)
            self._collect(0.0)

    def _hand_out(self) -> None:
        for kind in {member.kind for member in self.fleet.members}:
            while (member := self.fleet.best(kind)) and (assignment := self.waiting.take(kind)):
                self.flying[member.actor.play.remote(assignment)] = (member, assignment)
                member.load += 1

    def _collect(self, timeout: float) -> None:
        """Take in whatever has happened within so many seconds."""
        starting = self.fleet.starting()
        references = [*self.flying, *starting]
        if not references:
            time.sleep(min(timeout, 0.1))
            return
        finished, _ = ray.wait(references, timeout=timeout)
        if finished:  # the others that are there too, at the price of one call
            finished, _ = ray.wait(references, num_returns=len(references), timeout=0)
        for reference in finished:
            if reference in starting:
                self._started(starting[reference])
            elif reference in self.flying:
                self._ended(reference)
        self._show()

    def _started(self, member: Member) -> None:
        try:
            member.node, member.starting = ray.get(member.starting), None
            self.unstarted = 0
        except RayActorError as error:
            self.fleet.remove(member)
            self.unstarted += 1
            if self.unstarted >= START_FAILURES:
                raise PoolError(f"rollout hosts do not start: {error}") from None

    def _ended(self, reference: Any) -> None:
        member, assignment = self.flying.pop(reference)
        member.load -= 1
        member.idle_since = time.monotonic()
        try:
            self.tally.count(ray.get(reference))
            self.left = without(self.left, assignment)
        except (RayActorError, ObjectLostError) as error:
            self._lost(member, assignment, error)
        except Exception as error:
            self._failed(assignment, _reason(error))

    def _lost(self, member: Member, assignment: Assignment, error: Exception) -> None:
        """A host died: its episodes are played again elsewhere, but not for ever."""
        if member in self.fleet.members:
            log.warning("a rollout host on node %s died: %s", member.node[:8], error)
            metrics.count("vla_worker_restarts_total", cause="host")
            self.fleet.remove(member)
        key = assignment.episode.key
        self.deaths[key] += 1
        if self.deaths[key] > HOST_DEATHS:
            reason = f"HostDied: {error}\nlost its host {self.deaths[key]} times"
            self._failed(assignment, reason)
        else:
            self.waiting.again(assignment, 2 ** self.deaths[key] * random.uniform(0.1, 0.3))

    def _failed(self, assignment: Assignment, reason: str) -> None:
        """An error is kept beside the rows and never counts as a failure of the policy.

        reason: its kind and its text, of which the last line is shown.
        """
        kind, _, text = reason.partition(": ")
        self.tally.errors.append((assignment, f"{kind}: {(text.splitlines() or [''])[-1]}"))
        self.left = without(self.left, assignment)
        self.ledger.record_error(assignment.episode, kind, text)
        metrics.count("vla_episodes_total", benchmark=assignment.benchmark.name, outcome="error")

    def _watch_nodes(self, notice: Notice) -> None:
        """Nodes that are drained get no more work; if it is the driver's own, all must end."""
        if time.monotonic() - self.watched < WATCH_S:
            return
        self.watched = time.monotonic()
        leaving = fleet.draining()
        self.fleet.leave(leaving)
        if ray.get_runtime_context().get_node_id() in leaving:
            notice.give("the driver's node is drained")

    def _stop(self, notice: Notice) -> None:
        """Begin nothing, let what flies land for a while, then say what is left."""
        said, deadline = notice.given, time.monotonic() + self.limits.grace
        log.warning("%s: waiting for %d episodes in flight", notice.cause, len(self.flying))
        while self.flying and time.monotonic() < deadline and notice.given == said:
            self._collect(0.5)
        done, dropped = self.tally.done, len(self.flying)
        raise PreemptedError(
            f"stopped in order ({notice.cause}): {done} of {self.tally.total} episodes are "
            f"committed, {dropped} in flight were dropped, {len(self.waiting)} were not begun; "
            "the same command continues"
        )

    def _require_place(self) -> None:
        """PoolError when no node could ever hold a host; if they are only full, say so."""
        now = time.monotonic()
        if self.flying or self.fleet.running():
            self.placed = now
        elif now - self.placed > self.limits.place:
            self.placed = now
            kind = next(iter(self.left))
            cluster, there = self.pool.cluster, fleet.nodes()
            slots = self.pool.slots(kind)
            needed = (
                f"a host of {kind} simulators takes {amounts(cluster.takes(kind, slots))}, the "
                f"nodes have {' and '.join(map(amounts, there))} in all"
            )
            if not any(cluster.fits(kind, slots, node) for node in there):
                raise PoolError(f"{needed}: add a node with room for one")
            log.warning("still waiting for a place: %s, and others occupy them", needed)

    def _show(self) -> None:
        tally = self.tally
        tally.running = len(self.flying)
        tally.hosts, tally.pending = len(self.fleet.running()), len(self.fleet.starting())
        metrics.show("vla_queue_episodes", tally.missing, state="waiting")
        metrics.show("vla_queue_episodes", tally.running, state="running")
        metrics.show("vla_rollout_hosts", tally.hosts, state="running")
        metrics.show("vla_rollout_hosts", tally.pending, state="pending")
        self.progress(tally)


def _reason(error: Exception) -> str:
    """The error's kind and text. Where that is one line, Ray's trace of its task comes first."""
    cause = getattr(error, "cause", None) or error
    text = str(cause).strip()
    if cause is not error and "\n" not in text:
        text = f"{ANSI.sub('', str(error)).strip()}\n{text}"
    return f"{type(cause).__name__}: {text}"
