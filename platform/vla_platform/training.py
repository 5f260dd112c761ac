"""Ray Train around a training loop that knows nothing of Ray.

The store is the truth: a started or restarted worker asks it for the last complete
checkpoint, so Ray's own checkpoints are not used. Ray places the workers, watches them and
changes their number; whether a failure is worth another attempt is decided here.
"""

from __future__ import annotations

import gc
import logging
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from vla_platform import artifacts, places, room
from vla_platform.cluster import Cluster
from vla_platform.local import LocalDataset
from vla_platform.store import Store, StoreError, StoreUnavailableError
from vla_platform.store_sink import StoreSink

log = logging.getLogger(__name__)

ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**62),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Of workers that compute on a CPU: glibc keeps a step's activations for the next one, in huge
pages. Asking the kernel for them anew took up to a tenth of a step (`make bench-train`)."""
ON_CPU = ALLOCATOR | {"DS_ACCELERATOR": "cpu"}
"""Environment of such workers: DeepSpeed is told what it would warn of."""
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
"""(`LocalDataset`, scratch folder), and the file of the weights to start from if there is one."""


@dataclass(frozen=True)
class Task:
    """One training to its end.

    id: of its checkpoints in the store. title: what its progress lines call it. dataset: what
    it is trained on. start: whose weights it starts from, if not from the backbone's own.
    """

    id: str
    title: str
    steps: int
    dataset: str
    make_job: MakeJob
    start: artifacts.Checkpoint | None = None

    def reached(self, store: Store) -> int:
        """The step of the newest complete checkpoint; -1 without one."""
        found = artifacts.checkpoints(store, self.id)
        return found[-1].step if found else -1


def fit(train: Train, tasks: Sequence[Task], store: Store, cluster: Cluster) -> None:
    """Train each task to its end, one after another in one group of workers.

    train: the loop, called in every worker with (job, sink). An error in `FINAL` is raised at
    once; any other once `MAX_FAILURES` restarts in a row got no further; PoolError when the nodes
    have no room for a training and none is added.
    """
    room.require(cluster)
    left, failures, before = list(tasks), 0, [-1]
    while left:
        try:
            _attempt(_Worker(train, left, store), left[0].id, cluster)
            return
        except TrainingFailedError as failure:
            reason = _reason(failure)
            if is_final(reason):
                raise reason from failure
            reached = [task.reached(store) for task in tasks]
            failures = 1 if sum(reached) > sum(before) else failures + 1
            before = reached
            if failures > MAX_FAILURES:
                raise
            left = [task for task, at in zip(tasks, reached, strict=True) if at < task.steps]
            log.warning("%s; again from there: %s", brief(reason), _places(tasks, reached))


def _places(tasks: Sequence[Task], reached: Sequence[int]) -> str:
    pairs = zip(tasks, reached, strict=True)
    return ", ".join(f"{task.title} step {max(0, at)}" for task, at in pairs)


def _attempt(worker: _Worker, run: str, cluster: Cluster) -> None:
    trainer = TorchTrainer(
        worker,
        torch_config=TorchConfig(backend="nccl" if cluster.gpus_per_worker else "gloo"),
        scaling_config=_scaling(cluster),
        run_config=RunConfig(
            name=f"{run}-{uuid4().hex[:6]}",
            storage_path=str(places.home() / "ray"),
            failure_config=FailureConfig(max_failures=0),
            # Ray Train V2 has it, the annotations do not.
            worker_runtime_env={  # type: ignore[call-arg]
                "env_vars": {} if cluster.gpus_per_worker else ON_CPU
            },
        ),
    )
    trainer.fit()


def _scaling(cluster: Cluster) -> ScalingConfig:
    low, high = cluster.workers
    return ScalingConfig(
        # Ray accepts (min, max) for elastic training, which its annotation does not say.
        num_workers=high if low == high else (low, high),  # type: ignore[arg-type]
        use_gpu=bool(cluster.gpus_per_worker),
        resources_per_worker=cluster.worker,
    )


def _reason(failure: TrainingFailedError) -> BaseException:
    """What the workers raised; the final one of them if there is one.

    When one worker fails, the others' collectives break, which says nothing.
    """
    wrapped = list(getattr(failure, "worker_failures", {}).values())
    reasons = [getattr(error, "_base_exc", error) for error in wrapped] or [failure]
    return next((error for error in reasons if isinstance(error, FINAL)), reasons[0])


def is_final(error: BaseException) -> bool:
    """Whether the same steps would meet the error again."""
    return isinstance(error, FINAL) and not isinstance(error, TRANSIENT)


def trace(error: BaseException) -> str:
    """An error with its trace: of `fit`, what Ray tells of the workers', which is their ends."""
    failure = error if isinstance(error, TrainingFailedError) else error.__cause__
    if isinstance(failure, TrainingFailedError):
        return f"{failure}\n{brief(_reason(failure))}"
    return "".join(traceback.format_exception(error))


def brief(reason: BaseException) -> str:
    """An error in one line."""
    lines = str(reason).strip().splitlines() or [""]
    return f"{type(reason).__name__}: {lines[0][:200]}"


class _Worker:
    """What Ray Train calls in every worker.

    Ray unpickles it in the process's main thread, the only one that may set a signal
    handler, and calls it in another.
    """

    def __init__(self, train: Train, tasks: Sequence[Task], store: Store) -> None:
        self.train, self.tasks, self.store = train, tasks, store

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.noticed = Notices()

    def __call__(self) -> None:
        for task in self.tasks:
            with places.scratch() as scratch:
                self._one(task, scratch)
            gc.collect()  # the next model wants the room of this one's cycles
        log.info("rank %d finished", ray.train.get_context().get_world_rank())

    def _one(self, task: Task, scratch: Path) -> None:
        data = LocalDataset.of(self.store, task.dataset)
        job = task.make_job(data, scratch, *self._start(task))
        show = ProgressLine(task.title, task.steps)
        sink = StoreSink(self.store, task.id, scratch, show, self.noticed)
        try:
            self.train(job, sink)
        finally:
            sink.curves.close()

    def _start(self, task: Task) -> list[Path]:
        if task.start is None:
            return []
        return [artifacts.fetch_policy(self.store, task.start) / artifacts.WEIGHTS]


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
