"""Policies behind one batched, batch-invariant call.

A replica holds checkpoints loaded from the store and answers observations of many episodes
in batches of one fixed shape, so an episode's actions do not depend on who shared its batch.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray
from ray.actor import ActorHandle

from envs.api import Observation
from vla_platform import artifacts
from vla_platform.artifacts import Checkpoint
from vla_platform.store import Store

log = logging.getLogger(__name__)

GATHER_S = 0.004
"""How long a batch waits for company after its first observation."""
MOST_POLICIES = 4
"""Checkpoints kept in a replica's memory; the least recently used leaves first."""


class Policy(Protocol):
    """All the platform knows of a policy.

    batch_invariant: whether, at a fixed shape, company leaves actions bit-identical; if not,
    observations are answered one by one.
    """

    @property
    def batch_invariant(self) -> bool: ...

    def act(self, observations: Sequence[Observation], length: int | None) -> np.ndarray:
        """Action chunks float32 [B, k, 7] in the benchmark's units, at one fixed `length`."""
        ...

    def group(self, observation: Observation) -> int:
        """The length for one observation: a function of it alone; equal ones share a batch."""
        ...


LoadPolicy = Callable[[Path], Policy]


class BadActionsError(Exception):
    """A policy answered with actions that are not finite numbers of the right shape."""


@dataclass
class _Request:
    checkpoint: Checkpoint
    observation: Observation
    answer: Future[np.ndarray]


def padded(observations: Sequence[Observation], size: int) -> list[Observation]:
    """Fill a batch up to `size` with copies of its last member."""
    return [*observations, *[observations[-1]] * (size - len(observations))]


class Replica:
    """One inference process; wrapped as a Ray actor by `start_replicas`."""

    def __init__(self, store: Store, load: LoadPolicy, batch: int, threads: int) -> None:
        self.store, self.load, self.batch = store, load, batch
        self.policies: dict[str, Policy] = {}
        self.waiting: queue.Queue[_Request] = queue.Queue()
        _limit_threads(threads)
        threading.Thread(target=self._serve, daemon=True).start()

    def act(
        self, checkpoint: Checkpoint, images: np.ndarray, instructions: Sequence[str]
    ) -> np.ndarray:
        """images uint8 [n, H, W, 3] → action chunks float32 [n, k, 7]; any n."""
        requests = [
            _Request(checkpoint, Observation(image, text), Future())
            for image, text in zip(images, instructions, strict=True)
        ]
        for request in requests:
            self.waiting.put(request)
        return np.stack([request.answer.result() for request in requests])

    def _serve(self) -> None:
        backlog: list[_Request] = []
        while True:
            backlog += self._gather(block=not backlog)
            try:
                self._answer(self._alike(backlog))
            except Exception as error:
                # A policy that cannot be loaded or fails answers so; this thread must live on.
                for request in self._same_policy(backlog):
                    if not request.answer.done():
                        request.answer.set_exception(error)
            backlog = [request for request in backlog if not request.answer.done()]

    def _gather(self, block: bool) -> list[_Request]:
        """Whatever waits; after the first, company may still arrive for GATHER_S."""
        found: list[_Request] = [self.waiting.get()] if block else []
        deadline = time.monotonic() + (GATHER_S if block else 0)
        while len(found) < self.batch:
            try:
                left = deadline - time.monotonic()
                found.append(
                    self.waiting.get(timeout=left) if left > 0 else self.waiting.get(False)
                )
            except queue.Empty:
                break
        return found

    def _alike(self, backlog: list[_Request]) -> list[_Request]:
        """The oldest request and those that may share its batch, up to the fixed size."""
        policy = self._policy(backlog[0])
        group = policy.group(backlog[0].observation)
        same = self._same_policy(backlog)
        return [r for r in same if policy.group(r.observation) == group][: self._size(policy)]

    def _size(self, policy: Policy) -> int:
        return self.batch if policy.batch_invariant else 1

    def _same_policy(self, backlog: list[_Request]) -> list[_Request]:
        return [r for r in backlog if r.checkpoint == backlog[0].checkpoint]

    def _policy(self, request: _Request) -> Policy:
        digest = request.checkpoint.digest
        policy = self.policies.pop(digest, None) or self.load(
            artifacts.fetch_policy(self.store, request.checkpoint)
        )
        self.policies[digest] = policy
        while len(self.policies) > MOST_POLICIES:
            self.policies.pop(next(iter(self.policies)))
        return policy

    def _answer(self, batch: list[_Request]) -> None:
        policy = self.policies[batch[0].checkpoint.digest]
        length = policy.group(batch[0].observation)
        seen = padded([request.observation for request in batch], self._size(policy))
        chunks = policy.act(seen, length)
        for request, chunk in zip(batch, chunks[: len(batch)], strict=True):
            request.answer.set_result(_checked(chunk))


def _checked(chunk: np.ndarray) -> np.ndarray:
    if chunk.ndim != 2 or chunk.shape[1] != 7 or not np.isfinite(chunk).all():
        raise BadActionsError(
            f"the policy answered actions of shape {chunk.shape} (finite: "
            f"{bool(np.isfinite(chunk).all())}); expected finite [k, 7]"
        )
    return chunk


def _limit_threads(threads: int) -> None:
    """Torch, where a policy uses it, must not fight the simulators for cores."""
    import torch

    torch.set_num_threads(threads)


def start_replicas(
    store: Store, load: LoadPolicy, batch: int, replicas: int, gpus: float, threads: int
) -> list[ActorHandle[Any]]:
    """Inference actors that restart by themselves; a repeated call gives the same actions."""
    # Calls are pure, so Ray may repeat them on a fresh actor without changing a result.
    actor: Any = ray.remote(Replica).options(
        num_cpus=0, num_gpus=gpus, max_restarts=-1, max_task_retries=-1, max_concurrency=64
    )
    return [actor.remote(store, load, batch, threads) for _ in range(replicas)]
