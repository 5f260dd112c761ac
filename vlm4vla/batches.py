"""A worker's share of every global batch, prepared one step ahead of the computation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from envs.api import Benchmark
from vlm4vla.data import augment, profiles
from vlm4vla.data.dataset import Dataset
from vlm4vla.data.frames import DECODERS
from vlm4vla.data.normalise import Normaliser
from vlm4vla.data.order import batch_at, generator_at, share
from vlm4vla.policies import VlmPolicy
from vlm4vla.run import Run


@dataclass(frozen=True)
class Batch:
    """A micro-batch. targets: what a loss takes beside the inputs; of a policy its actions
    [b, k, 7], normalised, and their mask, bool [b, k].

    weight makes the micro-batches' mean losses average to the mean over the global batch.
    tokens: real ones, padding left out.
    """

    inputs: dict[str, torch.Tensor]
    targets: tuple[torch.Tensor, ...]
    weight: float
    tokens: int


class Ahead:
    """Batches by step, each prepared while the one before it is computed.

    waited: seconds the last one was waited for.
    """

    waited = 0.0

    def _prepare(self, step: int) -> list[Batch]:
        """This worker's micro-batches of a step."""
        raise NotImplementedError

    def steps(self, first: int, last: int) -> Iterator[tuple[int, list[Batch]]]:
        """Steps [first, last); a thread prepares the next while one is computed."""
        with ThreadPoolExecutor(1, "batches") as ahead:
            future = ahead.submit(self._prepare, first)
            for step in range(first, last):
                began = time.monotonic()
                batch = future.result()
                self.waited = time.monotonic() - began
                if step + 1 < last:
                    future = ahead.submit(self._prepare, step + 1)
                yield step, batch


class Batches(Ahead):
    """What worker `rank` of `workers` computes at each step of a resolved run.

    parts: micro-batches per step.
    """

    def __init__(
        self,
        run: Run,
        benchmark: Benchmark,
        data: Dataset,
        policy: VlmPolicy,
        normaliser: Normaliser,
        rank: int,
        workers: int,
        parts: int,
    ) -> None:
        assert run.batch is not None
        self.run, self.benchmark, self.data = run, benchmark, data
        self.policy, self.normaliser = policy, normaliser
        self.batch, self.workers, self.parts = run.batch, workers, parts
        mine = range(self.batch)[share(self.batch, rank, workers)]
        self.slots = [mine[share(len(mine), part, parts)] for part in range(parts)]
        self.augmentation = profiles.augmentation(benchmark.recipe, run.profile)
        self.each = ThreadPoolExecutor(DECODERS, "samples").map if data.decodes else map

    def samples(self, step: int) -> list[int]:
        """Indices in the dataset of the global batch of a step."""
        return batch_at(self.run.seed, step, self.batch, len(self.data)).tolist()

    def _prepare(self, step: int) -> list[Batch]:
        indices = batch_at(self.run.seed, step, self.batch, len(self.data))
        chunks, mask = self.data.chunks(indices, self.benchmark.chunk)
        weigh = self.workers * self.parts / mask.sum()
        return [self._part(step, slots, indices, chunks, mask, weigh) for slots in self.slots]

    def _part(
        self,
        step: int,
        slots: range,
        indices: np.ndarray,
        chunks: np.ndarray,
        mask: np.ndarray,
        weigh: float,
    ) -> Batch:
        sample = partial(self._sample, step, indices=indices, chunks=chunks)
        images, actions = zip(*self.each(sample, slots), strict=True)
        own = mask[slots.start : slots.stop]
        texts = [self.data.instructions[indices[slot]] for slot in slots]
        keys = [(self.run.seed, step, slot) for slot in slots]
        inputs = {**self.policy.prepare(np.stack(images), texts), **self.policy.draws(keys)}
        return Batch(
            inputs,
            (torch.from_numpy(self.normaliser.forward(np.stack(actions))), torch.from_numpy(own)),
            weight=float(own.sum() * weigh),
            tokens=int(inputs["attention_mask"].sum()),
        )

    def _sample(
        self, step: int, slot: int, indices: np.ndarray, chunks: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        rng = generator_at(self.run.seed, step, slot)
        image = self.data.images[indices[slot]]
        return augment.apply(self.augmentation, image, chunks[slot], rng)
