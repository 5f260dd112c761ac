"""`Cluster`: the one value that differs between a laptop and 32 GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


ENGINE = (
    *("zero", "precision", "micro_batch", "threads"),
    *("checkpointing", "optimiser", "checkpoint_every", "stall_s"),
)
"""Fields of a `Cluster` that say how a training worker computes."""


@dataclass(frozen=True)
class Cluster:
    """How training and rollouts are spread; never part of a run's or an episode's identity.

    workers: training workers (min, max); equal numbers switch elasticity off.
    zero, precision, micro_batch, threads, checkpointing, optimiser, checkpoint_every, stall_s:
    see `vlm4vla.engine.Engine`, which `engine()` are the arguments of.
    slots: simulators per rollout host, at most; hosts: rollout hosts; simulator_cores: cores
    that a host may fill with simulators, of which heavy ones take a whole core each.
    batch: observations per inference call, always padded to this many.
    gpu_share: GPUs per inference replica; replicas: how many.
    """

    workers: tuple[int, int]
    cpus_per_worker: float
    gpus_per_worker: float
    zero: int
    precision: str
    micro_batch: int | None
    threads: int
    slots: int
    hosts: int
    cpus_per_host: float
    simulator_cores: int
    replicas: int
    batch: int
    gpu_share: float
    checkpointing: bool = False
    optimiser: str = "adamw"
    checkpoint_every: int | None = None
    stall_s: float | None = 600.0

    def engine(self) -> dict[str, Any]:
        """How a worker computes, for `vlm4vla.engine.Engine`."""
        return {name: getattr(self, name) for name in ENGINE}


CLUSTERS: dict[str, Cluster] = {
    "laptop": Cluster(
        workers=(2, 2),
        cpus_per_worker=0.5,
        gpus_per_worker=0,
        zero=0,
        precision="fp32",
        micro_batch=None,
        threads=1,
        slots=16,
        hosts=2,
        cpus_per_host=0.1,
        simulator_cores=1,
        replicas=1,
        batch=16,
        gpu_share=0,
    ),
    "cluster": Cluster(
        workers=(4, 8),
        cpus_per_worker=8,
        gpus_per_worker=1,
        zero=2,
        precision="bf16",
        micro_batch=16,
        threads=8,
        slots=8,
        hosts=12,
        cpus_per_host=8,
        simulator_cores=8,
        replicas=1,
        batch=32,
        gpu_share=1,
        checkpointing=True,
        optimiser="fused",
        checkpoint_every=500,
        stall_s=1800.0,
    ),
    # Qwen3-VL-30B-A3B on 4 nodes of 8 A100 with 80 GB: 27 GB a GPU at 32 and 47 GB at 16
    # (`python -m vlm4vla.planner qwen3vl-30b-a3b --zero 3 --gpus 32 --batch 16`), and while a
    # worker starts 62 GB of its node's memory, eight times over.
    "4x8-a100": Cluster(
        workers=(16, 32),
        cpus_per_worker=12,
        gpus_per_worker=1,
        zero=3,
        precision="bf16",
        micro_batch=16,
        threads=8,
        slots=8,
        hosts=12,
        cpus_per_host=8,
        simulator_cores=8,
        replicas=1,
        batch=32,
        gpu_share=1,
        checkpointing=True,
        optimiser="fused",
        checkpoint_every=500,
        stall_s=1800.0,
    ),
}
