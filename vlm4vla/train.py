"""The one training loop: DeepSpeed on any number of workers, no Ray.

The global batch of step t is a pure function of (seed, t); each worker computes its share
of it. Checkpoints and metrics leave through a `Sink`, so the loop knows neither store nor
cluster. Run alone it trains in the calling process.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import deepspeed
import numpy as np
import torch
import torch.distributed as dist

from envs.api import Benchmark
from vlm4vla.data import augment, profiles
from vlm4vla.data.dataset import Dataset
from vlm4vla.data.normalise import Normaliser
from vlm4vla.data.order import batch_at, generator_at, share
from vlm4vla.export import save_policy
from vlm4vla.policies import VlmPolicy, build_policy
from vlm4vla.run import Run

log = logging.getLogger(__name__)
T = TypeVar("T")

STATE = "state"


@dataclass(frozen=True)
class Engine:
    """How a training is computed; never changes which samples it sees.

    zero: DeepSpeed ZeRO stage 0–3. precision: fp32, bf16 or fp16. micro_batch: samples per
    worker and forward pass; None computes the worker's whole share at once.
    """

    zero: int = 0
    precision: str = "fp32"
    micro_batch: int | None = None
    threads: int = 1


@dataclass(frozen=True)
class TrainJob:
    """One resolved run on one benchmark row, with its prepared demonstrations on local disk."""

    run: Run
    benchmark: Benchmark
    dataset: Path
    scratch: Path
    engine: Engine = Engine()
    log_every: int = 50
    keep_untrained: bool = False
    """Also publish the policy before its first step, as step 0, to be compared with."""


def make_job(
    run: Run,
    benchmark: Benchmark,
    engine: Engine,
    keep_untrained: bool,
    dataset: Path,
    scratch: Path,
) -> TrainJob:
    """A job from what is known when it is planned and what a worker adds: its folders."""
    return TrainJob(
        run=run.resolved(benchmark.recipe),
        benchmark=benchmark,
        dataset=dataset,
        scratch=scratch,
        engine=engine,
        keep_untrained=keep_untrained,
    )


class Sink(Protocol):
    """Where checkpoints and metrics go."""

    def latest(self) -> tuple[int, Path] | None:
        """The last complete checkpoint's step and local folder, or None."""
        ...

    def publish(self, step: int, folder: Path, rank: int) -> None:
        """Called by every worker with its own part of a checkpoint."""
        ...

    def commit(self, step: int) -> None:
        """Called on rank 0 once every worker has published: makes the checkpoint visible."""
        ...

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Called on rank 0."""
        ...


class TrainingDivergedError(Exception):
    """The loss is not finite; the message names the step and the batch's samples."""


@dataclass(frozen=True)
class _Batch:
    """A micro-batch; actions [b, k, 7] normalised, mask bool [b, k].

    weight makes the micro-batches' mean losses average to the mean over the global batch.
    """

    inputs: dict[str, torch.Tensor]
    actions: torch.Tensor
    mask: torch.Tensor
    weight: float


class _Loss(torch.nn.Module):
    """The policy as DeepSpeed wants it: forward gives the loss to differentiate."""

    def __init__(self, policy: VlmPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(
        self, inputs: dict[str, torch.Tensor], actions: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        return self.policy.loss(inputs, actions, mask)


def train(job: TrainJob, sink: Sink) -> None:
    """Train `job` to its last step, resuming from the sink's last complete checkpoint."""
    torch.set_num_threads(job.engine.threads)
    _join_process_group()
    trainer = _Trainer(job, sink)
    trainer.resume()
    trainer.loop()


def _join_process_group() -> None:
    """Use the group the launcher made, else make one of this process alone."""
    if dist.is_initialized():
        return
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed refuses to start without it
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    store = dist.HashStore()
    dist.init_process_group(backend, store=store, rank=0, world_size=1)


class _Trainer:
    def __init__(self, job: TrainJob, sink: Sink) -> None:
        self.job, self.run, self.sink = job, job.run, sink
        self.rank, self.workers = dist.get_rank(), dist.get_world_size()
        self.steps, self.batch = _required(job.run.steps), _required(job.run.batch)
        torch.manual_seed(job.run.seed)
        self.policy = build_policy(
            job.run,
            job.benchmark.chunk,
            overrides=job.benchmark.recipe.overrides,
            action_spec=job.benchmark.action_spec,
        )
        px = self.policy.input_px(job.run.image_px)
        self.data = Dataset(job.dataset, px, self.policy.resize)
        self.normaliser = Normaliser(
            profiles.normalisation(job.benchmark.recipe, job.run.profile),
            self.data.manifest.statistics,
        )
        self.policy.normaliser = self.normaliser
        self.engine = self._engine()
        self.step = 0

    def _engine(self) -> Any:
        parameters = list(self.policy.optimised_parameters())
        recipe = self.policy.recipe
        optimiser = torch.optim.AdamW(
            parameters,
            lr=_required(self.run.lr),
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
        )
        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False)
        engine, *_ = deepspeed.initialize(
            model=_Loss(self.policy),
            optimizer=optimiser,
            model_parameters=parameters,
            config=deepspeed_config(self.job.engine, self.batch, self.workers, recipe.clip_norm),
        )
        return engine

    def resume(self) -> None:
        """Weights, optimiser and step of the last complete checkpoint; nothing when new."""
        found = self.sink.latest()
        if found is None:
            return
        self.step, folder = found
        self.engine.load_checkpoint(str(folder / STATE), tag="engine")
        log.info("resumed %s at step %d", self.run.backbone, self.step)

    def loop(self) -> None:
        began, seen = time.monotonic(), self.step
        if self.step == 0 and self.job.keep_untrained:
            self._checkpoint()
        for step, batch in self._batches():
            metrics = self._one(step, batch)
            self.step = step + 1
            if self.step % self.job.log_every == 0 or self.step == self.steps:
                rate = (self.step - seen) * self.batch / (time.monotonic() - began)
                began, seen = time.monotonic(), self.step
                self._report({**metrics, "samples_per_s": rate})
            if self.step in self._checkpoint_steps():
                self._checkpoint()

    def _checkpoint_steps(self) -> set[int]:
        listed = self.job.benchmark.recipe.checkpoints
        return {step for step in listed if step < self.steps} | {self.steps}

    def _batches(self) -> Iterator[tuple[int, list[_Batch]]]:
        """Batches prepared one step ahead in a thread, so that decoding hides behind compute."""
        with ThreadPoolExecutor(1) as ahead:
            future = ahead.submit(self._prepare, self.step)
            for step in range(self.step, self.steps):
                batch = future.result()
                if step + 1 < self.steps:
                    future = ahead.submit(self._prepare, step + 1)
                yield step, batch

    def _prepare(self, step: int) -> list[_Batch]:
        """This worker's share of the global batch, in micro-batches."""
        indices = batch_at(self.run.seed, step, self.batch, len(self.data))
        chunks, mask = self.data.chunks(indices, self.job.benchmark.chunk)
        slots = range(self.batch)[share(self.batch, self.rank, self.workers)]
        size = self.engine.train_micro_batch_size_per_gpu()
        parts = [slots[first : first + size] for first in range(0, len(slots), size)]
        weigh = self.workers * len(parts) / mask.sum()
        return [self._part(step, part, indices, chunks, mask, weigh) for part in parts]

    def _part(
        self,
        step: int,
        slots: range,
        indices: np.ndarray,
        chunks: np.ndarray,
        mask: np.ndarray,
        weigh: float,
    ) -> _Batch:
        images, actions = zip(*(self._sample(step, s, indices, chunks) for s in slots), strict=True)
        own = mask[slots.start : slots.stop]
        return _Batch(
            self.policy.prepare(
                np.stack(images), [self.data.instructions[indices[slot]] for slot in slots]
            ),
            torch.from_numpy(self.normaliser.forward(np.stack(actions))),
            torch.from_numpy(own),
            weight=float(own.sum() * weigh),
        )

    def _sample(
        self, step: int, slot: int, indices: np.ndarray, chunks: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        rng = generator_at(self.run.seed, step, slot)
        name = profiles.augmentation(self.job.benchmark.recipe, self.run.profile)
        return augment.apply(name, self.data.images[indices[slot]], chunks[slot], rng)

    def _one(self, step: int, batch: Sequence[_Batch]) -> dict[str, float]:
        """One optimiser step over this worker's micro-batches; their mean metrics."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(self.job, step)
        totals: dict[str, float] = {}
        for part in batch:
            for name, value in self._accumulate(step, part).items():
                totals[name] = totals.get(name, 0.0) + value * part.weight
        weight = sum(part.weight for part in batch)
        return {name: value / weight for name, value in totals.items()}

    def _accumulate(self, step: int, part: _Batch) -> dict[str, float]:
        device = self.engine.device
        inputs = {name: tensor.to(device) for name, tensor in part.inputs.items()}
        loss, metrics = self.engine(inputs, part.actions.to(device), part.mask.to(device))
        if not math.isfinite(loss.item()):
            samples = batch_at(self.run.seed, step, self.batch, len(self.data)).tolist()
            raise TrainingDivergedError(
                f"loss is {loss.item()} at step {step} of {self.run.backbone}; lower the learning "
                f"rate or look at the batch's samples {samples}"
            )
        self.engine.backward(loss * part.weight)
        self.engine.step()
        return {"loss": loss.item(), **{name: float(value) for name, value in metrics.items()}}

    def _report(self, metrics: Mapping[str, float]) -> None:
        if self.rank == 0:
            self.sink.report(self.step, {**metrics, "lr": learning_rate(self.job, self.step - 1)})

    def _checkpoint(self) -> None:
        folder = self.job.scratch / f"step-{self.step:08d}-rank{self.rank}"
        folder.mkdir(parents=True, exist_ok=True)
        self.engine.save_checkpoint(str(folder / STATE), tag="engine", save_latest=False)
        if self.rank == 0:
            save_policy(self.policy, self.run, self.job.benchmark, folder)
        self.sink.publish(self.step, folder, self.rank)
        dist.barrier()
        if self.rank == 0:
            self.sink.commit(self.step)


def _required(value: T | None) -> T:
    if value is None:
        raise ValueError("train a resolved run: call run.resolved(benchmark.recipe) first")
    return value


def learning_rate(job: TrainJob, step: int) -> float:
    """Warm-up, then the recipe's schedule, at step `step` (from 0)."""
    recipe, lr, steps = job.benchmark.recipe, _required(job.run.lr), _required(job.run.steps)
    if step < recipe.warmup:
        return lr * (step + 1) / recipe.warmup
    if recipe.schedule == "constant":
        return lr
    progress = (step - recipe.warmup) / max(1, steps - recipe.warmup)
    return lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def deepspeed_config(
    engine: Engine, batch: int, workers: int, clip_norm: float | None = None
) -> dict[str, Any]:
    """DeepSpeed's configuration; ValueError when workers cannot share the batch evenly."""
    if batch % workers:
        raise ValueError(f"a global batch of {batch} does not divide among {workers} workers")
    micro = min(engine.micro_batch or batch // workers, batch // workers)
    return {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": batch // workers // micro,
        "zero_optimization": {"stage": engine.zero},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": clip_norm or 0.0,
        "bf16": {"enabled": engine.precision == "bf16"},
        "fp16": {"enabled": engine.precision == "fp16"},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
