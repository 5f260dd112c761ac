"""Policies of the store behind one batched, batch-invariant call, as Ray actors.

A replica holds checkpoints loaded from the store and answers observations of many episodes
in batches of one fixed shape, so an episode's actions do not depend on who shared its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle

from envs.api import Observation
from vla_platform import artifacts, metrics
from vla_platform.artifacts import Checkpoint
from vla_platform.batcher import Batcher, Policy
from vla_platform.store import Store

LoadPolicy = Callable[..., Policy]
"""A policy's folder to the policy, in fp32 on the CPU, unless `precision=`, `device=` are given."""


class Replica(Batcher):
    """One inference process with the store's policies; a Ray actor in `start_replicas`."""

    def __init__(self, store: Store, load: LoadPolicy, batch: int, threads: int) -> None:
        fetch = lambda checkpoint: load(artifacts.fetch_policy(store, checkpoint))  # noqa: E731
        super().__init__(fetch, batch, threads, _note)

    def act(
        self,
        checkpoint: Checkpoint,
        images: np.ndarray,
        instructions: Sequence[str],
        seeds: Sequence[int] | None = None,
    ) -> np.ndarray:
        """images uint8 [n, H, W, 3] → action chunks float32 [n, k, 7]; any n.

        seeds: what a stochastic policy draws from, one for each observation; zeros if None.
        """
        drawn = [0] * len(instructions) if seeds is None else seeds
        answers = [
            self.ask(checkpoint, Observation(image, text, seed=seed))
            for image, text, seed in zip(images, instructions, drawn, strict=True)
        ]
        return np.stack([answer.result() for answer in answers])


def _note(seconds: float, observations: int) -> None:
    metrics.observe("vla_inference_seconds", seconds, kind="local")
    metrics.observe("vla_inference_batch_observations", observations)


def start_replicas(
    store: Store, load: LoadPolicy, batch: int, replicas: int, gpus: float, threads: int
) -> list[ActorHandle[Any]]:
    """Inference actors that restart by themselves; a repeated call gives the same actions."""
    # Calls are pure, so Ray may repeat them on a fresh actor without changing a result.
    actor: Any = ray.remote(Replica).options(
        scheduling_strategy="DEFAULT",  # not inside a Tune trial's own small share
        num_cpus=0,
        num_gpus=gpus,
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=64,
    )
    return [actor.remote(store, load, batch, threads) for _ in range(replicas)]
