"""A rollout host: several simulator children of one node, each playing one episode at a time.

The host is a threaded Ray actor: a slot's thread blocks on its child or on the policy.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import uuid
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from ray.actor import ActorHandle

from envs.api import Benchmark
from envs.process import SimulatorDied, on_device
from vla_platform import metrics
from vla_platform.assignments import Assignment, video_key
from vla_platform.cluster import Limits
from vla_platform.courier import Courier
from vla_platform.ledger import Ledger
from vla_platform.remote import PolicyUnavailableError
from vla_platform.rows import Row, encode_row
from vla_platform.slots import EpisodeLateError, Played, Slot, cause_of, require_same_outcome
from vla_platform.store import Store
from vla_platform.video import encode_mp4

log = logging.getLogger(__name__)

RETRIES = 3
BACK_OFF_S = 0.5
LONGEST_BACK_OFF_S = 10.0
PATIENCE_S = 120.0
"""How long a policy may be out of reach: a server's restart must not end an evaluation."""
BROKEN = (SimulatorDied, EpisodeLateError, PolicyUnavailableError)
"""What the infrastructure did, and not the policy: played again."""


class Host:
    """Plays episodes in up to `slots` children at once; commits each before it answers."""

    def __init__(
        self,
        store: Store,
        replica: ActorHandle[Any] | None,
        slots: int,
        limits: Limits | None = None,
    ) -> None:
        self.ledger, self.store, self.slots = Ledger(store), store, slots
        self.limits = limits or Limits()
        self.courier = Courier(replica, slots, self.limits.answer)
        self.idle: list[Slot] = []
        self.playing = 0
        self.lock = threading.Lock()
        self.node: str = ray.get_runtime_context().get_node_id()
        devices = ray.get_gpu_ids()
        self.env = on_device(int(devices[0])) if devices else {}

    def ready(self) -> str:
        """The node's id, once the actor runs."""
        return self.node

    def play(self, assignment: Assignment) -> Row:
        """Play one episode to its end, retrying what infrastructure broke; returns its row."""
        began, failed, attempt = time.monotonic(), 0.0, 0
        while True:
            try:
                played = self._attempt(assignment)
                break
            except BROKEN as error:
                failed = failed or time.monotonic()
                log.warning("%s: attempt %d: %s", assignment.episode.task, attempt + 1, error)
                if not _worth_repeating(error, attempt, failed):
                    raise
                metrics.count("vla_episode_retries_total", benchmark=assignment.benchmark.name)
                pause = min(BACK_OFF_S * 2**attempt, LONGEST_BACK_OFF_S)
                time.sleep(pause * random.uniform(0.5, 1.5))
                attempt += 1
        row = self._row(assignment, played, time.monotonic() - began, attempt)
        return self._commit(assignment, row, played)

    def _attempt(self, assignment: Assignment) -> Played:
        slot, whole = self._take(assignment.benchmark), False
        try:
            played = slot.play(assignment, partial(self._act, assignment), self.limits)
            whole = True
        except BROKEN as error:
            metrics.count("vla_worker_restarts_total", cause=cause_of(error))
            raise
        finally:
            self._give_back(slot, whole)
        return played

    def _act(self, assignment: Assignment, *question: Any) -> Any:
        observation, timeout = question
        horizon = assignment.episode.cell.horizon
        return self.courier.act(assignment.checkpoint, observation, horizon, timeout)

    def _row(self, assignment: Assignment, played: Played, wall_s: float, errors: int) -> Row:
        return Row(
            episode=assignment.episode,
            **played.outcome(),
            wall_s=wall_s,
            finished_at=time.time(),
            writer=uuid.uuid4().hex,
            node=self.node[:8],
            error_count=errors,
        )

    def _commit(self, assignment: Assignment, row: Row, played: Played) -> Row:
        """A row is put once. A replay puts its video alone, and only if it came out the same."""
        name = assignment.benchmark.name
        if assignment.replay is not None:
            episode = f"the replay of {row.episode.task} #{row.episode.initial_state}"
            require_same_outcome(played.outcome(), assignment.replay, episode)
            video = encode_mp4(played.frames)
            self.store.put(video_key(row.episode), video)
            metrics.count("vla_stored_bytes_total", len(video), kind="video")
            return replace(row, video=video_key(row.episode))
        self.ledger.commit(row)
        outcome = "success" if row.success else "failure"
        metrics.count("vla_episodes_total", benchmark=name, outcome=outcome)
        metrics.count("vla_env_steps_total", row.steps, benchmark=name)
        metrics.observe("vla_episode_seconds", row.wall_s, benchmark=name)
        metrics.count("vla_stored_bytes_total", len(encode_row(row)), kind="row")
        return row

    def _take(self, benchmark: Benchmark) -> Slot:
        """An idle child of this benchmark, or a new one in the place of an idle other."""
        with self.lock:
            for slot in self.idle:
                if slot.benchmark.simulator == benchmark.simulator and slot.benchmark == benchmark:
                    self.idle.remove(slot)
                    self.playing += 1
                    return slot
            full = self.idle and len(self.idle) + self.playing >= self.slots
            spare = self.idle.pop(0) if full else None
            self.playing += 1
        if spare:
            spare.process.close()
        return Slot(benchmark, self.env, self.ledger.fingerprint)

    def _give_back(self, slot: Slot, whole: bool) -> None:
        """whole: the episode came to its end; after any other the child is not trusted."""
        cause = slot.worn() if whole else ""
        if not whole:
            slot.process.kill()
        elif cause:
            slot.process.close()
            metrics.count("vla_worker_restarts_total", cause=cause)
        with self.lock:
            self.playing -= 1
            if whole and not cause:
                self.idle.append(slot)

    def close(self) -> None:
        """End every idle child."""
        with self.lock:
            idle, self.idle = self.idle, []
        for slot in idle:
            slot.process.close()
        self.courier.lines.close()


def _worth_repeating(error: Exception, attempt: int, failed: float) -> bool:
    """failed: when the first attempt did. Simulators get some tries, policies some time."""
    if isinstance(error, PolicyUnavailableError):
        return time.monotonic() - failed < PATIENCE_S
    return attempt < RETRIES
