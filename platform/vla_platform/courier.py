"""How a host asks policies: replicas in stacked calls, servers over a line for each episode."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError

from envs.api import Observation
from vla_platform import metrics
from vla_platform.artifacts import Checkpoint
from vla_platform.assignments import AnyPolicy
from vla_platform.batcher import checked
from vla_platform.remote import Lines, PolicyUnavailableError, Remote

GATHER_S = 0.003
GATHER_SHARE = 0.1
"""Company is awaited no longer than GATHER_S and this share of what the last call took: beside
a quick policy, waiting costs more than the calls it saves."""


class Question(NamedTuple):
    checkpoint: Checkpoint
    observation: Observation
    answer: Future[np.ndarray]


class Courier:
    """Carries waiting observations of all slots to one replica, one stacked call at a time."""

    def __init__(self, replica: ActorHandle[Any] | None, slots: int, timeout: float) -> None:
        self.replica, self.slots, self.timeout = replica, slots, timeout
        self.lines = Lines()
        self.waiting: queue.Queue[Question] = queue.Queue()
        self.lasted = 0.0
        threading.Thread(target=self._serve, daemon=True).start()

    def act(
        self, policy: AnyPolicy, observation: Observation, horizon: int, timeout: float
    ) -> np.ndarray:
        """The first `horizon` actions float32 [horizon, 7] of the policy's answer.

        PolicyUnavailableError when it comes too late or not at all, BadActionsError when it is
        no finite chunk of that length, PolicyRefusedError when a server says why it has none.
        """
        if isinstance(policy, Remote):
            began = time.perf_counter()
            chunk = self.lines.act(policy, observation, min(timeout, self.timeout))
            metrics.observe("vla_inference_seconds", time.perf_counter() - began, kind="remote")
        else:
            chunk = self._answer(policy, observation, timeout)
        return checked(chunk, horizon, str(policy))

    def _answer(self, policy: Checkpoint, observation: Observation, timeout: float) -> np.ndarray:
        answer: Future[np.ndarray] = Future()
        self.waiting.put(Question(policy, observation, answer))
        try:
            return answer.result(timeout)
        except TimeoutError:
            raise PolicyUnavailableError(f"{policy} did not answer in {timeout:.0f} s") from None

    def _serve(self) -> None:
        while True:
            found = [self.waiting.get()]
            deadline = time.monotonic() + min(GATHER_S, GATHER_SHARE * self.lasted)
            while len(found) < self.slots and (left := deadline - time.monotonic()) > 0:
                try:
                    found.append(self.waiting.get(timeout=left))
                except queue.Empty:
                    break
            began = time.monotonic()
            for checkpoint in dict.fromkeys(item.checkpoint for item in found):
                self._ask(checkpoint, [item for item in found if item.checkpoint == checkpoint])
            self.lasted = time.monotonic() - began

    def _ask(self, checkpoint: Checkpoint, questions: Sequence[Question]) -> None:
        """One call for all; if it fails, one for each, so that nobody pays for their company."""
        try:
            chunks = self._call(checkpoint, [question.observation for question in questions])
            answered = list(zip(questions, chunks, strict=True))
        except PolicyUnavailableError as error:
            for question in questions:
                question.answer.set_exception(error)
        except Exception as error:
            if len(questions) == 1:
                questions[0].answer.set_exception(error)
                return
            for question in questions:
                self._ask(checkpoint, [question])
        else:
            for question, chunk in answered:
                question.answer.set_result(chunk)

    def _call(self, checkpoint: Checkpoint, seen: Sequence[Observation]) -> Sequence[np.ndarray]:
        if self.replica is None:
            raise RuntimeError(f"{checkpoint} needs an inference replica; this pool has none")
        images = np.stack([observation.image for observation in seen])
        instructions = [observation.instruction for observation in seen]
        seeds = [observation.seed for observation in seen]
        try:
            call: Any = self.replica.act.remote(checkpoint, images, instructions, seeds)
            found: Sequence[np.ndarray] = ray.get(call, timeout=self.timeout)
        except GetTimeoutError:
            # It hangs: Ray starts another in its place.
            ray.kill(self.replica, no_restart=False)
            raise PolicyUnavailableError(
                f"the replica of {checkpoint} was silent for {self.timeout:.0f} s and was restarted"
            ) from None
        return found
