"""Ray Train around a training loop that knows nothing of Ray.

The store is the truth: a started or restarted worker asks it for the last complete
checkpoint, so Ray's own checkpoints are not used.
"""

from __future__ import annotations

import io
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from vla_platform import artifacts, places
from vla_platform.cluster import Cluster
from vla_platform.store import Store

log = logging.getLogger(__name__)

MAX_FAILURES = 3
SAY_EVERY_S = 10.0
SHOWN = ("loss", "pose_loss", "gripper_accuracy", "samples_per_s")
"""Metrics of a progress line; all of them go to the store."""
Train = Callable[[Any, Any], None]
MakeJob = Callable[[Path, Path], Any]


class StoreSink:
    """A run's checkpoints and metrics in the store; the `Sink` of `vlm4vla.train`."""

    def __init__(self, store: Store, run: str, scratch: Path, show: Callable[..., None]) -> None:
        self.store, self.run, self.scratch, self.show = store, run, scratch, show
        self.rows: list[dict[str, float]] = []
        self.digests: dict[int, str] = {}

    def latest(self) -> tuple[int, Path] | None:
        """The newest complete checkpoint with its optimiser state on local disk."""
        for checkpoint in reversed(artifacts.checkpoints(self.store, self.run)):
            prefix = artifacts.state_prefix(self.run, checkpoint.step)
            keys = list(self.store.list(prefix + "/"))
            if keys:
                folder = self.scratch / f"resume-{checkpoint.step:08d}"
                for key in keys:
                    self.store.download(key, folder / key.removeprefix(prefix + "/"))
                return checkpoint.step, folder
        return None

    def publish(self, step: int, folder: Path, rank: int) -> None:
        prefix = artifacts.state_prefix(self.run, step)
        for path in sorted(p for p in (folder / "state").rglob("*") if p.is_file()):
            self.store.upload(path, f"{prefix}/{path.relative_to(folder)}")
        if rank == 0:
            artifacts.publish_policy(self.store, self.run, step, folder)
            self.digests[step] = artifacts.file_digest(folder / artifacts.WEIGHTS)
        shutil.rmtree(folder)

    def commit(self, step: int) -> None:
        if self.rows:
            sink = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(self.rows), sink)
            self.store.put(f"metrics/{self.run}/step-{step:08d}.parquet", sink.getvalue())
            self.rows = []
        artifacts.complete_policy(self.store, self.run, step, self.digests[step])

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append({"step": step, "time": time.time(), **metrics})
        self.show(step, metrics)


def fit(
    train: Train,
    make_job: MakeJob,
    run: str,
    dataset: str,
    store: Store,
    cluster: Cluster,
    title: str,
    steps: int,
) -> list[artifacts.Checkpoint]:
    """Train one run to its end and return its complete checkpoints.

    train: the loop, called in every worker with (job, sink). make_job: builds the job from
    the dataset's local folder and a scratch folder. Raises what the loop raised, after
    `MAX_FAILURES` restarts.
    """
    config = {
        "train": train,
        "make_job": make_job,
        "run": run,
        "dataset": dataset,
        "store": store,
        "title": title,
        "steps": steps,
    }
    trainer = TorchTrainer(
        _worker,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if cluster.gpus_per_worker else "gloo"),
        scaling_config=_scaling(cluster),
        run_config=RunConfig(
            name=f"{run}-{uuid4().hex[:6]}",
            storage_path=str(places.home() / "ray"),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    trainer.fit()
    return artifacts.checkpoints(store, run)


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


def _worker(config: dict[str, Any]) -> None:
    store: Store = config["store"]
    rank = ray.train.get_context().get_world_rank()
    began = time.monotonic()

    steps, said = config["steps"], [began]

    def show(step: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        if now - said[0] < SAY_EVERY_S and step < steps:
            return
        said[0] = now
        left = (now - began) * (steps - step) / max(1, step)
        figures = " ".join(f"{name} {metrics[name]:.4g}" for name in SHOWN if name in metrics)
        pace = f"{now - began:.0f}s, ~{left:.0f}s left"
        # Workers' output is what Ray carries to the driver and the dashboard's job log.
        print(f"{config['title']}: step {step}/{steps} {pace}, {figures}", flush=True)  # noqa: T201

    with tempfile.TemporaryDirectory(prefix="vla-train-") as name:
        scratch = Path(name)
        job = config["make_job"](artifacts.fetch_dataset(store, config["dataset"]), scratch)
        config["train"](job, StoreSink(store, config["run"], scratch, show))
    log.info("rank %d finished", rank)
