"""Ray Train around a training loop that knows nothing of Ray.

The store is the truth: a started or restarted worker asks it for the last complete
checkpoint, so Ray's own checkpoints are not used. Ray places the workers, watches them and
changes their number; whether a failure is worth another attempt is decided here.
"""

from __future__ import annotations

import logging
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from vla_platform import artifacts, places
from vla_platform.cluster import Cluster
from vla_platform.store import Store, StoreError, StoreUnavailableError
from vla_platform.store_sink import StoreSink

log = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Failed attempts in a row of which none gets as far as a new checkpoint."""
FINAL = (
    *(ValueError, TypeError, LookupError, AttributeError, ImportError, NotImplementedError),
    *(FileNotFoundError, StoreError, torch.OutOfMemoryError),
)
"""Errors that the same steps would meet again: not retried…"""
TRANSIENT = (StoreUnavailableError,)
"""…but for these."""
ASK_EVERY = 5
"""Reports between two questions to Ray whether a node is drained; asking is a collective."""
SAY_EVERY_S = 10.0
SHOWN = ("loss", "pose_loss", "gripper_accuracy", "samples_per_s")
"""Figures of a progress line; all of them go to the store."""
Train = Callable[[Any, Any], None]
MakeJob = Callable[..., Any]
"""(dataset folder, scratch folder), and the file of the weights to start from if there is one."""


def fit(
    train: Train,
    make_job: MakeJob,
    run: str,
    dataset: str,
    store: Store,
    cluster: Cluster,
    title: str,
    steps: int,
    start: artifacts.Checkpoint | None = None,
) -> list[artifacts.Checkpoint]:
    """Train one run to its end and return its complete checkpoints.

    train: the loop, called in every worker with (job, sink). make_job: builds the job from
    the dataset's local folder, a scratch folder and, where there is a `start`, the file of its
    weights. An error in `FINAL` is raised at once;
    any other once `MAX_FAILURES` restarts in a row got no further.
    """
    worker = _Worker(train, make_job, run, dataset, store, title, steps, start)
    failures, reached = 0, -1
    while True:
        try:
            _attempt(worker, run, cluster)
            return artifacts.checkpoints(store, run)
        except TrainingFailedError as failure:
            reason = _reason(failure)
            if isinstance(reason, FINAL) and not isinstance(reason, TRANSIENT):
                raise reason from failure
            found = artifacts.checkpoints(store, run)
            newest = found[-1].step if found else 0
            failures = 1 if newest > reached else failures + 1
            reached = newest
            if failures > MAX_FAILURES:
                raise
            log.warning("%s: %s; again from step %d", title, _brief(reason), newest)


def _attempt(worker: _Worker, run: str, cluster: Cluster) -> None:
    trainer = TorchTrainer(
        worker,
        torch_config=TorchConfig(backend="nccl" if cluster.gpus_per_worker else "gloo"),
        scaling_config=_scaling(cluster),
        run_config=RunConfig(
            name=f"{run}-{uuid4().hex[:6]}",
            storage_path=str(places.home() / "ray"),
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    trainer.fit()


def _scaling(cluster: Cluster) -> ScalingConfig:
    low, high = cluster.workers
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    return ScalingConfig(
        # Ray accepts (min, max) for elastic training, which its annotation does not say.
        num_workers=high if low == high else (low, high),  # type: ignore[arg-type]
        use_gpu=bool(cluster.gpus_per_worker),
        resources_per_worker=resources,
    )


def _reason(failure: TrainingFailedError) -> BaseException:
    """What the workers raised; the final one of them if there is one.

    When one worker fails, the others' collectives break, which says nothing.
    """
    wrapped = list(getattr(failure, "worker_failures", {}).values())
    reasons = [getattr(error, "_base_exc", error) for error in wrapped] or [failure]
    return next((error for error in reasons if isinstance(error, FINAL)), reasons[0])


def _brief(reason: BaseException) -> str:
    lines = str(reason).strip().splitlines() or [""]
    return f"{type(reason).__name__}: {lines[0][:200]}"


class _Worker:
    """What Ray Train calls in every worker.

    Ray unpickles it in the process's main thread, the only one that may set a signal
    handler, and calls it in another.
    """

    def __init__(
        self,
        train: Train,
        make_job: MakeJob,
        run: str,
        dataset: str,
        store: Store,
        title: str,
        steps: int,
        start: artifacts.Checkpoint | None,
    ) -> None:
        self.train, self.make_job, self.run, self.dataset = train, make_job, run, dataset
        self.store, self.title, self.steps, self.start = store, title, steps, start

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.noticed = Notices()

    def __call__(self) -> None:
        with tempfile.TemporaryDirectory(prefix="vla-train-") as name:
            scratch = Path(name)
            folder = artifacts.fetch_dataset(self.store, self.dataset)
            job = self.make_job(folder, scratch, *self._start())
            show = ProgressLine(self.title, self.steps)
            sink = StoreSink(self.store, self.run, scratch, show, self.noticed)
            try:
                self.train(job, sink)
            finally:
                sink.curves.close()
        log.info("rank %d finished", ray.train.get_context().get_world_rank())

    def _start(self) -> list[Path]:
        if self.start is None:
            return []
        return [artifacts.fetch_policy(self.store, self.start) / artifacts.WEIGHTS]


class Notices:
    """True once after a SIGTERM to this process, and once when Ray drains a worker's node."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._drained = False
        self._calls = 0
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: self._asked.set())

    def __call__(self) -> bool:
        """Every worker calls this equally often: Ray's answer is agreed among them."""
        self._calls += 1
        noticed = self._asked.is_set()
        self._asked.clear()
        if self._calls % ASK_EVERY == 0 and not self._drained:
            self._drained = ray.train.get_preemption_info() is not None
            noticed = noticed or self._drained
        return noticed


class ProgressLine:
    """Prints how far a training is, at most every `SAY_EVERY_S`; Ray carries it to the driver."""

    def __init__(self, title: str, steps: int) -> None:
        self.title, self.steps = title, steps
        self.began = self.said = time.monotonic()

    def __call__(self, row: Mapping[str, float]) -> None:
        step, now = int(row["step"]), time.monotonic()
        if now - self.said < SAY_EVERY_S and step < self.steps:
            return
        self.said = now
        spent = now - self.began
        left = spent * (self.steps - step) / max(1, step)
        figures = " ".join(f"{name} {row[name]:.4g}" for name in SHOWN if name in row)
        print(  # noqa: T201
            f"{self.title}: step {step}/{self.steps} {spent:.0f}s, ~{left:.0f}s left, {figures}",
            flush=True,
        )
