"""A rollout host: several simulator children of one node, each playing one episode at a time.

The host is a threaded Ray actor. A slot's thread blocks on its child or on the policy; a
courier thread carries the observations that wait to an inference replica in one call, since
one stacked call costs Ray hardly more than a single frame.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle

from envs.api import Benchmark, Observation, StepResult
from envs.hashing import stable_hash
from envs.process import SimulatorDied, SimulatorProcess
from vla_platform.artifacts import Checkpoint
from vla_platform.ledger import Ledger
from vla_platform.rows import Episode, Row
from vla_platform.store import Store
from vla_platform.video import encode_mp4

log = logging.getLogger(__name__)

RETRIES = 3
BACK_OFF_S = 0.5
RECYCLE_EPISODES = 200
"""A child is replaced after this many episodes: simulators leak."""
RECYCLE_GROWTH = 1.5
"""…or when its memory exceeds this multiple of what it was after its first episode."""
GATHER_S = 0.003


@dataclass(frozen=True)
class Assignment:
    """One episode to play, by which policy. record: also keep an mp4 of every step."""

    checkpoint: Checkpoint
    benchmark: Benchmark
    episode: Episode
    record: bool = False


class WrongEnvironmentError(Exception):
    """This node's simulator is not the one that the episode's key was made for."""


def video_key(episode: Episode) -> str:
    """Where an episode's video lies in the store."""
    return f"videos/{episode.cell.id}/{episode.key}.mp4"


class Slot:
    """One child and what is known of it."""

    def __init__(self, benchmark: Benchmark) -> None:
        self.benchmark = benchmark
        self.process = SimulatorProcess(benchmark)
        self.fingerprint = ""
        self.episodes = 0
        self.first_rss = 0

    def check(self, episode: Episode) -> None:
        """Every child is asked once, because nodes of a cluster need not be equal."""
        self.fingerprint = self.fingerprint or stable_hash(self.process.fingerprint())
        if self.fingerprint != episode.cell.fingerprint:
            raise WrongEnvironmentError(
                f"{self.benchmark.name} on this node has the environment {self.fingerprint[:12]}, "
                f"the episode wants {episode.cell.fingerprint[:12]}: install the same versions on "
                "every node, or evaluate under this environment instead"
            )

    def worn(self) -> bool:
        self.episodes += 1
        rss = self.process.rss_bytes()
        self.first_rss = self.first_rss or rss
        return self.episodes >= RECYCLE_EPISODES or rss > RECYCLE_GROWTH * self.first_rss


class Courier:
    """Carries waiting observations of all slots to one replica, one stacked call at a time."""

    def __init__(self, replica: ActorHandle[Any], slots: int) -> None:
        self.replica, self.slots = replica, slots
        self.waiting: queue.Queue[tuple[Checkpoint, Observation, Future[np.ndarray]]] = (
            queue.Queue()
        )
        threading.Thread(target=self._serve, daemon=True).start()

    def act(self, checkpoint: Checkpoint, observation: Observation) -> np.ndarray:
        answer: Future[np.ndarray] = Future()
        self.waiting.put((checkpoint, observation, answer))
        return answer.result()

    def _serve(self) -> None:
        while True:
            found = [self.waiting.get()]
            deadline = time.monotonic() + GATHER_S
            while len(found) < self.slots and (left := deadline - time.monotonic()) > 0:
                try:
                    found.append(self.waiting.get(timeout=left))
                except queue.Empty:
                    break
            for checkpoint in dict.fromkeys(item[0] for item in found):
                self._ask(checkpoint, [item for item in found if item[0] == checkpoint])

    def _ask(
        self,
        checkpoint: Checkpoint,
        items: Sequence[tuple[Checkpoint, Observation, Future[np.ndarray]]],
    ) -> None:
        images = np.stack([observation.image for _, observation, _ in items])
        instructions = [observation.instruction for _, observation, _ in items]
        try:
            chunks: Sequence[np.ndarray] = ray.get(
                self.replica.act.remote(checkpoint, images, instructions)
            )
        except Exception as error:
            for _, _, answer in items:
                answer.set_exception(error)
            return
        for (_, _, answer), chunk in zip(items, chunks, strict=True):
            answer.set_result(chunk)


class Host:
    """Plays episodes in up to `slots` children at once; commits each before it answers."""

    def __init__(self, store: Store, replica: ActorHandle[Any], slots: int) -> None:
        self.ledger, self.store = Ledger(store), store
        self.courier = Courier(replica, slots)
        self.slots = slots
        self.idle: list[Slot] = []
        self.lock = threading.Lock()
        self.node = ray.get_runtime_context().get_node_id()[:8]

    def ready(self) -> bool:
        return True

    def play(self, assignment: Assignment) -> Row:
        """Play one episode to its end, retrying what the simulator broke; returns its row."""
        began = time.monotonic()
        for attempt in range(RETRIES + 1):
            slot = self._take(assignment.benchmark)
            try:
                result, steps, replans, frames = self._attempt(slot, assignment)
            except SimulatorDied as error:
                slot.process.kill()
                log.warning("%s: attempt %d: %s", assignment.episode.task, attempt + 1, error)
                if attempt == RETRIES:
                    raise
                time.sleep(BACK_OFF_S * 2**attempt * random.uniform(0.5, 1.5))
                continue
            except BaseException:
                slot.process.kill()
                raise
            self._give_back(slot)
            row = self._row(assignment, result, steps, replans, time.monotonic() - began, attempt)
            return self._commit(row, frames)
        raise AssertionError("unreachable")

    def _attempt(
        self, slot: Slot, assignment: Assignment
    ) -> tuple[StepResult, int, int, list[np.ndarray]]:
        episode, record = assignment.episode, assignment.record
        slot.check(episode)
        seen = slot.process.reset(episode.task, episode.initial_state, episode.seed, record)
        frames = [seen.image] if record else []
        steps = replans = 0
        while True:
            if episode.instruction:
                seen = replace(seen, instruction=episode.instruction)
            chunk = self.courier.act(assignment.checkpoint, seen)
            result = slot.process.execute(chunk[: episode.cell.horizon])
            steps, replans = steps + result.steps, replans + 1
            frames.extend(result.frames)
            if result.done:
                return result, steps, replans, frames
            seen = result.observation

    def _row(
        self,
        assignment: Assignment,
        result: StepResult,
        steps: int,
        replans: int,
        wall_s: float,
        errors: int,
    ) -> Row:
        return Row(
            episode=assignment.episode,
            success=result.success,
            success_any=result.success_any,
            success_last=result.success_last,
            steps=steps,
            replans=replans,
            wall_s=wall_s,
            finished_at=time.time(),
            writer=uuid.uuid4().hex,
            node=self.node,
            error_count=errors,
            completed=getattr(result, "completed", None),
        )

    def _commit(self, row: Row, frames: list[np.ndarray]) -> Row:
        """The video first: a row that names a video must find it."""
        if frames:
            key = video_key(row.episode)
            self.store.put(key, encode_mp4(frames))
            row = replace(row, video=key)
        self.ledger.commit(row)
        return row

    def _take(self, benchmark: Benchmark) -> Slot:
        """An idle child of this benchmark, or a new one in the place of an idle other."""
        with self.lock:
            for slot in self.idle:
                if slot.benchmark.simulator == benchmark.simulator and slot.benchmark == benchmark:
                    self.idle.remove(slot)
                    return slot
            spare = self.idle.pop(0) if len(self.idle) >= self.slots else None
        if spare:
            spare.process.close()
        return Slot(benchmark)

    def _give_back(self, slot: Slot) -> None:
        if slot.worn():
            slot.process.close()
            return
        with self.lock:
            self.idle.append(slot)

    def close(self) -> None:
        """End every idle child."""
        with self.lock:
            idle, self.idle = self.idle, []
        for slot in idle:
            slot.process.close()
