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
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from envs.api import Benchmark
from vlm4vla import checkpoints, optimiser_state
from vlm4vla.batches import Batch, Batches
from vlm4vla.checkpoints import Part, Resumed, Sink
from vlm4vla.data import profiles
from vlm4vla.data.dataset import Dataset
from vlm4vla.data.normalise import Normaliser
from vlm4vla.engine import DTYPES, Engine, accumulation, start, update
from vlm4vla.figures import Figures, Row, peak_flops
from vlm4vla.policies import VlmPolicy, build_policy
from vlm4vla.prompts import to_device
from vlm4vla.publisher import Publisher
from vlm4vla.run import Run
from vlm4vla.watchdog import Watchdog

log = logging.getLogger(__name__)
T = TypeVar("T")

WEIGHTS = "policy.safetensors"
TIMES = ("step_s", "data_wait_s", "checkpoint_s")
"""Figures that are means over the workers, in seconds."""


@dataclass(frozen=True)
class TrainJob:
    """One resolved run on one benchmark row, with its prepared demonstrations on local disk."""

    run: Run
    benchmark: Benchmark
    dataset: Path
    scratch: Path
    engine: Engine = field(default_factory=Engine)
    log_every: int = 50
    """Steps between two reports, at most; about a second passes if that is fewer."""
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


class TrainingDivergedError(ValueError):
    """The loss is not finite; the message names the step and the batch's samples."""


def train(job: TrainJob, sink: Sink) -> None:
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
    def __init__(self, job: TrainJob, sink: Sink, resumed: Resumed) -> None:
        self.job, self.run, self.sink = job, job.run, sink
        self.rank, self.workers = dist.get_rank(), dist.get_world_size()
        self.steps, self.batch = _required(job.run.steps), _required(job.run.batch)
        self.step, self.attempt = resumed.step, resumed.attempt
        self.policy = self._policy(resumed)
        data = Dataset(job.dataset, self.policy.input_px(job.run.image_px), self.policy.resize)
        self.policy.normaliser = normaliser = Normaliser(
            profiles.normalisation(job.benchmark.recipe, job.run.profile), data.manifest.statistics
        )
        self.engine = start(job.engine, self.policy, _required(job.run.lr), self.batch)
        if resumed.folder is not None:
            state = sorted(resumed.folder.glob("zero*.safetensors"))
            optimiser_state.restore(self.engine, state)
            log.info("resumed %s at step %d", self.run.backbone, self.step)
        parts, _ = accumulation(job.engine, self.batch, self.workers)
        self.batches = Batches(
            self.run, job.benchmark, data, self.policy, normaliser, self.rank, self.workers, parts
        )
        self.figures = Figures(job.log_every, self.engine.device)
        self.flops = _flops(self.run, self.workers)
        self.stopped = 0.0

    def _policy(self, resumed: Resumed) -> VlmPolicy:
        benchmark = self.job.benchmark
        return build_policy(
            self.run,
            benchmark.chunk,
            overrides=benchmark.recipe.overrides,
            action_spec=benchmark.action_spec,
            weights=None if resumed.folder is None else resumed.folder / WEIGHTS,
            dtype=DTYPES[self.job.engine.precision],
        )

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
        for step, batch in self.batches.steps(self.step, self.steps):
            weight, weighted, norm = self._one(step, batch)
            self.step, began, ended = step + 1, ended, time.monotonic()
            self._note(batch, weight, weighted, norm, ended - began)
            dog.beat(self.step)
            self.publisher.check()
            noticed = self._report() if self.figures.due or self.step == self.steps else False
            if noticed or self._wanted():
                self._checkpoint()
            if noticed:
                log.warning("step %d: a machine is to be taken away; checkpoint saved", self.step)
                self.publisher.wait()

    def _one(self, step: int, batch: Sequence[Batch]) -> tuple[float, Row, float | None]:
        """One optimiser step; this worker's weight, figures times it, and the gradient norm."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(self.job, step)
        # Dropout, where a model has it: a function of the place in the run, as data order is.
        torch.manual_seed(((self.run.seed << 32) + step) * self.workers + self.rank)
        clip, device = self.policy.recipe.clip_norm, self.engine.device
        total = torch.zeros(())
        for part in batch:
            inputs = to_device(part.inputs, device)
            loss, metrics = self.engine(inputs, part.actions.to(device), part.mask.to(device))
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
            f"{what} at step {step} of {self.run.backbone}; lower the learning rate or look at "
            f"the batch's samples {self.batches.samples(step)}"
        )

    def _note(
        self, batch: Sequence[Batch], weight: float, weighted: Row, norm: float | None, took: float
    ) -> None:
        tokens = float(sum(part.tokens for part in batch))
        times = dict(zip(TIMES, (took, self.batches.waited, self.stopped), strict=True))
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
        if self.flops is not None:
            row["mfu"] = self.flops * self.batch / took
        return row

    def _wanted(self) -> bool:
        every = self.job.engine.checkpoint_every
        return self._evaluated() or (every is not None and self.step % every == 0)

    def _evaluated(self) -> bool:
        listed = self.job.benchmark.recipe.checkpoints
        return self.step in (0, self.steps) or (self.step in listed and self.step < self.steps)

    def _checkpoint(self) -> None:
        """Copy to host memory; writing and sending happen beside the steps that follow."""
        began = time.monotonic()
        self.publisher.wait()
        stage = self.job.engine.zero
        holds = self.step > 0 and optimiser_state.holds_a_part(stage)
        state = optimiser_state.snapshot(self.engine) if holds else None
        weights = checkpoints.copy_weights(self.policy, stage)
        part = Part(
            step=self.step,
            folder=self.job.scratch / f"step-{self.step:08d}-rank{self.rank}",
            rank=self.rank,
            state=optimiser_state.file_name(stage) if holds else None,
            attempt=self.attempt,
            parts=optimiser_state.files(stage) if self.step else 0,
            evaluated=self._evaluated(),
        )
        self.publisher.submit(
            partial(
                checkpoints.send,
                *(part, self.sink, self.policy, self.run, self.job.benchmark, weights, state),
            )
        )
        self.stopped += time.monotonic() - began


def _required(value: T | None) -> T:
    if value is None:
        raise ValueError("train a resolved run: call run.resolved(benchmark.recipe) first")
    return value


def _flops(run: Run, workers: int) -> float | None:
    """Share of all workers' peak that one sample a second makes up; None without a known GPU."""
    peak = peak_flops()
    if peak is None:
        return None
    from vlm4vla import cost  # counts parameters on the meta device, which takes a while

    return cost.training_flops(run) / cost.samples(run) / (peak * workers)


def learning_rate(job: TrainJob, step: int) -> float:
    """Warm-up, then the recipe's schedule, at step `step` (from 0)."""
    recipe, lr, steps = job.benchmark.recipe, _required(job.run.lr), _required(job.run.steps)
    if step < recipe.warmup:
        return lr * (step + 1) / recipe.warmup
    if recipe.schedule == "constant":
        return lr
    progress = (step - recipe.warmup) / max(1, steps - recipe.warmup)
    return lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
