"""The one training loop: DeepSpeed on any number of workers, no Ray.

The global batch of step t is a pure function of (seed, t); each worker computes its share
of it. Checkpoints and figures leave through a `Sink`, so the loop knows neither store nor
cluster. Run alone it trains in the calling process.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from envs.api import TrainingRecipe
from vlm4vla import checkpoints, optimiser_state
from vlm4vla.batches import Batch
from vlm4vla.checkpoints import Part, Resumed, Sink
from vlm4vla.engine import Engine, accumulation, start, update
from vlm4vla.export import WEIGHTS
from vlm4vla.figures import Figures, Row
from vlm4vla.prompts import to_device
from vlm4vla.publisher import Publisher
from vlm4vla.vlm import VisionLanguageModel
from vlm4vla.watchdog import Watchdog

log = logging.getLogger(__name__)

TIMES = ("step_s", "data_wait_s", "checkpoint_s")
"""Figures that are means over the workers, in seconds."""


class Feed(Protocol):
    """The micro-batches of one worker, step by step."""

    @property
    def waited(self) -> float:
        """Seconds that the last step's batch was waited for."""
        ...

    def steps(self, first: int, last: int) -> Iterator[tuple[int, Sequence[Batch]]]:
        """Steps [first, last), each with this worker's share of the global batch."""
        ...

    def samples(self, step: int) -> list[int]:
        """Indices in the data of the global batch of a step."""
        ...


class Job(Protocol):
    """What is trained: a policy (`vlm4vla.policy_job`) or a backbone (`vlm4vla.aux.stage_job`).

    recipe: steps, batch, rates and the steps whose checkpoints are evaluated. log_every: steps
    between two reports, at most; about a second passes if that is fewer. keep_untrained: also
    publish the model before its first step, as step 0, to be compared with.
    """

    @property
    def name(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def recipe(self) -> TrainingRecipe: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def scratch(self) -> Path: ...
    @property
    def log_every(self) -> int: ...
    @property
    def keep_untrained(self) -> bool: ...

    def model(self, weights: Path | None) -> VisionLanguageModel:
        """What is trained, as it starts, or as a checkpoint's file left it."""
        ...

    def feed(self, model: Any, rank: int, workers: int, parts: int) -> Feed:
        """The data of one worker; parts: micro-batches per step."""
        ...

    def save(self, model: Any, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write `WEIGHTS` and what is needed to use it."""
        ...

    def share_of_peak(self, workers: int) -> float | None:
        """What one sample a second makes of all workers' peak; None where nobody knows."""
        ...


class TrainingDivergedError(ValueError):
    """The loss is not finite; the message names the step and the batch's samples."""


def train(job: Job, sink: Sink) -> None:
    """Train `job` to its last step, resuming from the sink's last complete checkpoint."""
    torch.set_num_threads(job.engine.threads)
    _join_process_group()
    trainer = _Trainer(job, sink, checkpoints.find(sink, job.engine.zero))
    with Watchdog(job.engine.stall_s, f"worker {trainer.rank} of {trainer.workers}") as dog:
        trainer.loop(dog)


def _join_process_group() -> None:
    """Use the group the launcher made, else make one of this process alone."""
    if dist.is_initialized():
        return
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed refuses to start without it
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    store = dist.HashStore()
    dist.init_process_group(backend, store=store, rank=0, world_size=1)


class _Trainer:
    def __init__(self, job: Job, sink: Sink, resumed: Resumed) -> None:
        self.job, self.sink = job, sink
        self.rank, self.workers = dist.get_rank(), dist.get_world_size()
        self.steps, self.batch = job.recipe.steps, job.recipe.batch
        self.step, self.attempt = resumed.step, resumed.attempt
        self.model = job.model(None if resumed.folder is None else resumed.folder / WEIGHTS)
        parts, _ = accumulation(job.engine, self.batch, self.workers)
        self.feed = job.feed(self.model, self.rank, self.workers, parts)
        self.engine = start(job.engine, self.model, job.recipe.lr, self.batch)
        if resumed.folder is not None:
            state = sorted(resumed.folder.glob("zero*.safetensors"))
            optimiser_state.restore(self.engine, state)
            log.info("resumed %s at step %d", job.name, self.step)
        self.figures = Figures(job.log_every, self.engine.device)
        self.share = job.share_of_peak(self.workers)
        self.stopped = 0.0

    def loop(self, dog: Watchdog) -> None:
        self.publisher = Publisher(dog.beat)
        try:
            if self.step == 0 and self.job.keep_untrained:
                self._checkpoint()
            self._steps(dog)
            self.publisher.wait()
        finally:
            self.publisher.close()

    def _steps(self, dog: Watchdog) -> None:
        ended = time.monotonic()
        for step, batch in self.feed.steps(self.step, self.steps):
            weight, weighted, norm = self._one(step, batch)
            self.step, began, ended = step + 1, ended, time.monotonic()
            self._note(batch, weight, weighted, norm, ended - began)
            dog.beat(self.step)
            self.publisher.check()
            wanted = self._wanted()
            # A checkpoint's figures before it: a resume from there does not make them again.
            noticed = self._report() if self.figures.due or wanted else False
            if noticed or wanted:
                self._checkpoint()
            if noticed:
                log.warning("step %d: a machine is to be taken away; checkpoint saved", self.step)
                self.publisher.wait()

    def _one(self, step: int, batch: Sequence[Batch]) -> tuple[float, Row, float | None]:
        """One optimiser step; this worker's weight, figures times it, and the gradient norm."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(self.job, step)
        # Dropout, where a model has it: a function of the place in the run, as data order is.
        torch.manual_seed(((self.job.seed << 32) + step) * self.workers + self.rank)
        clip, device = self.model.recipe.clip_norm, self.engine.device
        total = torch.zeros(())
        for part in batch:
            inputs = to_device(part.inputs, device)
            loss, metrics = self.engine(inputs, *(target.to(device) for target in part.targets))
            self.engine.backward(loss * part.weight)
            norm = update(self.engine, self.job.engine, clip)
            values = torch.stack(list(metrics.values())) * part.weight
            total = total.to(device) + values
        # The one place where a step waits for its device.
        weighted = dict(zip(metrics, total.tolist(), strict=True))
        weight = sum(part.weight for part in batch)
        self._require_finite(step, weighted["loss"] / weight, norm)
        return weight, weighted, norm

    def _require_finite(self, step: int, loss: float, norm: float | None) -> None:
        """With fp16 an infinite gradient only lowers the loss scale."""
        if not math.isfinite(loss):
            what = f"loss is {loss}"
        elif norm is not None and not math.isfinite(norm) and self.job.engine.precision != "fp16":
            what = f"the gradient's norm is {norm}"
        else:
            return
        raise TrainingDivergedError(
            f"{what} at step {step} of {self.job.name}; lower the learning rate or look at "
            f"the batch's samples {self.feed.samples(step)}"
        )

    def _note(
        self, batch: Sequence[Batch], weight: float, weighted: Row, norm: float | None, took: float
    ) -> None:
        tokens = float(sum(part.tokens for part in batch))
        times = dict(zip(TIMES, (took, self.feed.waited, self.stopped), strict=True))
        weighted["grad_norm"] = weight * (math.nan if norm is None else norm)
        self.figures.add(self.step, weight, weighted, {"tokens": tokens, **times})
        self.stopped = 0.0

    def _report(self) -> bool:
        """Bring the figures together; True when some worker has got a notice."""
        rows, noticed = self.figures.gather(self.sink.notice(), TIMES)
        if self.rank == 0:
            self.sink.report([self._completed(row) for row in rows])
        return noticed

    def _completed(self, row: Row) -> Row:
        took = max(row["step_s"], 1e-9)
        row["lr"] = learning_rate(self.job, int(row["step"]) - 1)
        row["samples_per_s"] = self.batch / took
        row["tokens_per_s"] = row.pop("tokens") / took
        if self.share is not None:
            row["mfu"] = self.share * self.batch / took
        return row

    def _wanted(self) -> bool:
        every = self.job.engine.checkpoint_every
        return self._evaluated() or (every is not None and self.step % every == 0)

    def _evaluated(self) -> bool:
        listed = self.job.recipe.checkpoints
        return self.step in (0, self.steps) or (self.step in listed and self.step < self.steps)

    def _checkpoint(self) -> None:
        """Copy to host memory; writing and sending happen beside the steps that follow."""
        began = time.monotonic()
        self.publisher.wait()
        stage = self.job.engine.zero
        holds = self.step > 0 and optimiser_state.holds_a_part(stage)
        state = optimiser_state.snapshot(self.engine) if holds else None
        weights = checkpoints.copy_weights(self.model, stage)
        part = Part(
            step=self.step,
            folder=self.job.scratch / f"step-{self.step:08d}-rank{self.rank}",
            rank=self.rank,
            state=optimiser_state.file_name(stage) if holds else None,
            attempt=self.attempt,
            parts=optimiser_state.files(stage) if self.step else 0,
            evaluated=self._evaluated(),
        )
        save = partial(self.job.save, self.model)
        self.publisher.submit(partial(checkpoints.send, part, self.sink, save, weights, state))
        self.stopped += time.monotonic() - began


def learning_rate(job: Job, step: int) -> float:
    """Warm-up, then the recipe's schedule, at step `step` (from 0)."""
    recipe, lr = job.recipe, job.recipe.lr
    if step < recipe.warmup:
        return lr * (step + 1) / recipe.warmup
    if recipe.schedule == "constant":
        return lr
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
