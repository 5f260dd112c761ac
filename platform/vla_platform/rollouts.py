"""The pool: rollout hosts and inference replicas, and the driver that keeps them busy.

Hosts commit episodes themselves; the driver only hands out keys, so it can die at any moment
and the next one runs just what is missing.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from vla_platform.cluster import Cluster
from vla_platform.hosts import Assignment, Host
from vla_platform.inference import LoadPolicy, start_replicas
from vla_platform.rows import Row
from vla_platform.store import Store

log = logging.getLogger(__name__)

HOST_DEATHS = 3
"""How often an episode may lose its host before it is an error."""
Progress = Callable[["Tally"], None]


@dataclass
class Tally:
    """What became of the episodes handed to a pool. errors: (assignment, why)."""

    total: int
    done: int = 0
    running: int = 0
    successes: int = 0
    steps: int = 0
    retried: int = 0
    errors: list[tuple[Assignment, str]] = field(default_factory=list)

    def count(self, row: Row) -> None:
        self.done += 1
        self.successes += row.success
        self.steps += row.steps
        self.retried += row.error_count


class Pool:
    """Hosts and replicas on the cluster Ray is connected to; use as a context manager."""

    def __init__(self, store: Store, load: LoadPolicy, cluster: Cluster) -> None:
        self.store, self.cluster = store, cluster
        self.replicas = start_replicas(
            store, load, cluster.batch, cluster.replicas, cluster.gpu_share, cluster.threads
        )
        self.hosts = [self._host(index) for index in range(cluster.hosts)]

    def _host(self, index: int) -> ActorHandle[Any]:
        # No Ray-side restarts: a lost host's episodes are handed out again by the driver.
        actor: Any = ray.remote(Host).options(
            num_cpus=self.cluster.cpus_per_host, max_concurrency=self.cluster.slots + 2
        )
        replica = self.replicas[index % len(self.replicas)]
        return actor.remote(self.store, replica, self.cluster.slots)

    def run(self, assignments: Iterable[Assignment], progress: Progress | None = None) -> Tally:
        """Play every assignment; returns when each is committed or has become an error."""
        waiting = deque(sorted(assignments, key=_expected_steps, reverse=True))
        tally = Tally(total=len(waiting))
        flying: dict[Any, tuple[int, Assignment]] = {}
        deaths: dict[str, int] = {}
        while waiting or flying:
            self._hand_out(waiting, flying)
            finished, _ = ray.wait(list(flying), timeout=1.0)
            for reference in finished:
                index, assignment = flying.pop(reference)
                try:
                    tally.count(ray.get(reference))
                except RayActorError as error:
                    self._lost(index, assignment, error, waiting, tally, deaths)
                except (RayTaskError, Exception) as error:
                    tally.errors.append((assignment, _reason(error)))
            tally.running = len(flying)
            if progress:
                progress(tally)
        return tally

    def _hand_out(
        self, waiting: deque[Assignment], flying: dict[Any, tuple[int, Assignment]]
    ) -> None:
        load = [0] * len(self.hosts)
        for index, _ in flying.values():
            load[index] += 1
        while waiting and min(load) < self.cluster.slots:
            index = load.index(min(load))
            assignment = waiting.popleft()
            flying[self.hosts[index].play.remote(assignment)] = (index, assignment)
            load[index] += 1

    def _lost(
        self,
        index: int,
        assignment: Assignment,
        error: RayActorError,
        waiting: deque[Assignment],
        tally: Tally,
        deaths: dict[str, int],
    ) -> None:
        """A host died: start another and play its episodes again, but not for ever."""
        key = assignment.episode.key
        deaths[key] = deaths.get(key, 0) + 1
        if not self._alive(index):
            log.warning("rollout host %d died: %s", index, error)
            self.hosts[index] = self._host(index)
        if deaths[key] > HOST_DEATHS:
            tally.errors.append((assignment, f"lost its host {deaths[key]} times: {error}"))
        else:
            waiting.appendleft(assignment)

    def _alive(self, index: int) -> bool:
        try:
            return bool(ray.get(self.hosts[index].ready.remote(), timeout=10))
        except (RayActorError, ray.exceptions.GetTimeoutError):
            return False

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            try:
                ray.get(host.close.remote(), timeout=30)
            except Exception as problem:
                log.warning("a rollout host did not close: %s", problem)
        for actor in [*self.hosts, *self.replicas]:
            ray.kill(actor)


def _expected_steps(assignment: Assignment) -> int:
    """Longest first, so that the last episodes to finish are short ones."""
    return assignment.benchmark.step_limit(assignment.episode.task)


def _reason(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {str(cause).strip().splitlines()[-1] if str(cause) else ''}"
