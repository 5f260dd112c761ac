"""Observations of many askers answered in batches of one fixed shape, whoever shares them.

Nothing here needs Ray: policy servers in interpreters of their own batch with it as well.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from envs.api import Observation
from vla_platform.artifacts import Checkpoint

GATHER_S = 0.004
"""How long a batch waits for company after its first observation…"""
GATHER_SHARE = 0.5
"""…and this share of what the last batch took. The shorter of the two; the longer one where it
is known how many may yet come: a batch that leaves half of them behind costs as much as a full
one."""
MOST_POLICIES = 2
"""Checkpoints kept in memory: the one in use, and the one that episodes still in flight use. The
least recently used leaves before another is loaded."""


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


class Batcher:
    """Answers observations of many askers in batches of one fixed shape, in a thread of its own.

    load: the policy of a checkpoint that is not in memory. note: told the seconds and the
    observations of each call. company: how many may be asking at most, where that is known.
    """

    def __init__(
        self,
        load: Callable[[Checkpoint], Policy],
        batch: int,
        threads: int,
        note: Callable[[float, int], None] = lambda seconds, observations: None,
        company: Callable[[], int] | None = None,
    ) -> None:
        self.load, self.batch, self.note, self.company = load, batch, note, company
        self.lasted = 0.0
        self.policies: dict[str, Policy] = {}
        self.waiting: queue.Queue[_Request] = queue.Queue()
        _limit_threads(threads)
        threading.Thread(target=self._serve, daemon=True).start()

    def ask(self, checkpoint: Checkpoint, observation: Observation) -> Future[np.ndarray]:
        """The chunk float32 [k, 7] for one observation, once a batch has carried it."""
        request = _Request(checkpoint, observation, Future())
        self.waiting.put(request)
        return request.answer

    def _serve(self) -> None:
        backlog: list[_Request] = []
        while True:
            backlog += self._gather(block=not backlog)
            try:
                self._answer(self._alike(backlog))
            except Exception as error:
                # A policy that cannot be loaded answers so; this thread must live on.
                for request in self._same_policy(backlog):
                    if not request.answer.done():
                        request.answer.set_exception(error)
            backlog = [request for request in backlog if not request.answer.done()]

    def _gather(self, block: bool) -> list[_Request]:
        """Whatever waits; after the first, company may still arrive for a while."""
        found: list[_Request] = [self.waiting.get()] if block else []
        deadline = time.monotonic() + (self._patience() if block else 0)
        while len(found) < self.batch:
            left = deadline - time.monotonic() if len(found) < self._awaited() else 0
            try:
                found.append(
                    self.waiting.get(timeout=left) if left > 0 else self.waiting.get(False)
                )
            except queue.Empty:
                break
        return found

    def _awaited(self) -> int:
        return self.batch if self.company is None else self.company()

    def _patience(self) -> float:
        """Seconds, of which none is spent once everybody who may ask has asked."""
        share = GATHER_SHARE * self.lasted
        return min(GATHER_S, share) if self.company is None else max(GATHER_S, share)

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
        policy = self.policies.pop(digest, None) or self._loaded(request.checkpoint)
        self.policies[digest] = policy
        return policy

    def _loaded(self, checkpoint: Checkpoint) -> Policy:
        while len(self.policies) >= MOST_POLICIES:
            self.policies.pop(next(iter(self.policies)))
        try:
            return self.load(checkpoint)
        except Exception:
            if not self.policies:
                raise
        self.policies.clear()  # it may have found no room beside them
        return self.load(checkpoint)

    def _answer(self, batch: list[_Request]) -> None:
        """Actions, or for each its own error: one bad observation must not spoil its company."""
        try:
            chunks = self._infer(batch)
        except Exception as error:
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
            else:
                for request in batch:
                    self._answer([request])
            return
        for request, chunk in zip(batch, chunks, strict=True):
            request.answer.set_result(chunk)

    def _infer(self, batch: list[_Request]) -> np.ndarray:
        policy = self.policies[batch[0].checkpoint.digest]
        length = policy.group(batch[0].observation)
        seen = padded([request.observation for request in batch], self._size(policy))
        began = time.perf_counter()
        chunks = np.asarray(policy.act(seen, length))
        self.lasted = time.perf_counter() - began
        self.note(self.lasted, len(batch))
        if chunks.ndim != 3:
            raise _bad(batch[0].checkpoint, chunks)
        return chunks[: len(batch)]


def checked(chunk: np.ndarray, horizon: int, who: str) -> np.ndarray:
    """The `horizon` actions float32 [horizon, 7] to execute; BadActionsError names the policy.

    Never asked again: the same policy would answer the same observation alike.
    """
    if chunk.ndim != 2 or chunk.shape[1] != 7 or len(chunk) < horizon:
        raise BadActionsError(
            f"{who} answered actions of shape {list(chunk.shape)}; expected [k >= {horizon}, 7]"
        )
    if not np.isfinite(chunk).all():
        raise BadActionsError(f"{who} answered actions that are not finite numbers")
    return chunk[:horizon]


def _bad(checkpoint: Checkpoint, chunks: np.ndarray) -> BadActionsError:
    return BadActionsError(
        f"{checkpoint} answered actions of shape {list(chunks.shape)}; expected [B, k, 7]"
    )


def _limit_threads(threads: int) -> None:
    """Torch, where a policy uses it, must not fight the simulators for cores."""
    import torch

    torch.set_num_threads(threads)
