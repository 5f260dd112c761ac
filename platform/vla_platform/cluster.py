"""`Cluster`: the one value that differs between a laptop and 32 GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Needs:
    """What one simulator process takes of a node.

    memory_mib: MiB at its largest. render_slots: places on a GPU that renders, where there is one.
    """

    cores: float
    memory_mib: int
    render_slots: int = 1


NEEDS: dict[str, Needs] = {
    "tabletop": Needs(1 / 16, 64, render_slots=0),
    "libero": Needs(1, 2560),
    "calvin": Needs(1, 640),
    "simpler": Needs(1, 1024),
}
"""Measured (README, Real simulators); a simulator without a row is bounded by `slots` alone."""
UNKNOWN = Needs(0, 0, 0)


@dataclass(frozen=True)
class Limits:
    """How long things may take, seconds. Past them a child is killed and the episode retried.

    reset: an episode's beginning, once its simulator runs. chunk: one chunk of actions in the
    simulator. answer: one question to a policy, loading it included. episode: all of it.
    grace: how long episodes in flight may go on after a notice. place: how long a pool waits
    for a node that has room for one of its hosts.
    """

    reset: float = 300.0
    chunk: float = 120.0
    answer: float = 1200.0
    episode: float = 3600.0
    grace: float = 20.0
    place: float = 120.0


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
    together: runs of a sweep that one group of workers trains one after another before any is
    played: short ones, for which starting a group takes long.
    hosts: rollout hosts at most; slots: simulators of a host at most; simulator_cores: cores of
    a node that one host may fill with simulators. Ray places a host where its simulators'
    cores, memory and rendering slots are free, and asks the autoscaler for more nodes.
    render_slots: simulators that one GPU renders for; 0 where they render in software.
    batch: observations per inference call, always padded to this many.
    gpu_share: GPUs per inference replica; replicas: how many.
    gpu_gb: memory of a GPU in 1e9 bytes, of which a worker may fill its `gpus_per_worker`.
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
    simulator_cores: float
    render_slots: int
    replicas: int
    batch: int
    gpu_share: float
    limits: Limits = Limits()
    needs: Mapping[str, Needs] = field(default_factory=lambda: NEEDS)
    checkpointing: bool = False
    optimiser: str = "adamw"
    checkpoint_every: int | None = None
    stall_s: float | None = 600.0
    together: int = 1
    gpu_gb: float = 80.0

    @property
    def worker(self) -> dict[str, float]:
        """Ray's resources for one training worker."""
        taken = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}
        return {name: amount for name, amount in taken.items() if amount}

    @property
    def training_gpus(self) -> float:
        """What a training takes at most."""
        return self.workers[1] * self.gpus_per_worker

    @property
    def answers_in(self) -> str:
        """Precision of replicas, part of every episode's key: on a GPU the training's, else fp32.

        Weights were rounded to it while they were trained, so nothing is lost, and half the
        memory is taken.
        """
        return self.precision if self.gpu_share else "fp32"

    def engine(self) -> dict[str, Any]:
        """How a worker computes, for `vlm4vla.engine.Engine`."""
        return {name: getattr(self, name) for name in ENGINE}

    def slots_for(self, simulator: str, nodes: Sequence[Mapping[str, float]] = ()) -> int:
        """Simulators of one host, so that it fits one of the nodes (Ray's resources of each).

        If not even one simulator fits any, as many as a host may have: nodes may yet be added.
        """
        needs = self.needs.get(simulator, UNKNOWN)
        most = self.slots
        if needs.cores:
            most = max(1, min(most, int(self.simulator_cores / needs.cores)))
        fitting = (
            slots
            for slots in range(most, 0, -1)
            if any(self.fits(simulator, slots, node) for node in nodes)
        )
        return next(fitting, most)

    def fits(self, simulator: str, slots: int, node: Mapping[str, float]) -> bool:
        return all(node.get(name, 0.0) >= n for name, n in self.takes(simulator, slots).items())

    def takes(self, simulator: str, slots: int) -> dict[str, float]:
        """Ray's resources for a host with so many simulators: CPU, memory in bytes, GPU."""
        needs = self.needs.get(simulator, UNKNOWN)
        taken = {"CPU": needs.cores * slots, "memory": float(needs.memory_mib * slots * 2**20)}
        if self.render_slots and needs.render_slots:
            # One GPU at most: a host's simulators share the device that Ray gives it.
            taken["GPU"] = min(1.0, needs.render_slots * slots / self.render_slots)
        return {name: amount for name, amount in taken.items() if amount}

    def options(self, simulator: str, slots: int) -> dict[str, Any]:
        """The same for `ray.remote(...).options`."""
        takes = self.takes(simulator, slots)
        return {
            "num_cpus": takes.get("CPU", 0),
            "memory": takes.get("memory") or None,
            "num_gpus": takes.get("GPU", 0),
            "scheduling_strategy": "SPREAD",
        }


# Of 8 and 32 GPUs a training leaves one to the replica that answers rollouts beside it: an elastic
# training takes all it may have, and gives none back before its end.
_GPUS = Cluster(
    workers=(4, 7),
    cpus_per_worker=8,
    gpus_per_worker=1,
    zero=2,
    precision="bf16",
    micro_batch=16,
    threads=8,
    slots=8,
    hosts=12,
    simulator_cores=8,
    render_slots=0,
    replicas=1,
    batch=32,
    gpu_share=1,
    limits=Limits(place=900.0, grace=60.0),
    checkpointing=True,
    optimiser="fused",
    checkpoint_every=500,
    stall_s=1800.0,
)

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
        simulator_cores=1,
        render_slots=0,
        replicas=2,
        batch=16,
        gpu_share=0,
        optimiser="fused",
        together=9,
    ),
    # One GPU for both: the optimiser's state lies in the host's memory (16 bytes a parameter).
    "workstation": replace(
        _GPUS,
        workers=(1, 1),
        cpus_per_worker=4,
        threads=4,
        gpus_per_worker=0.75,
        gpu_share=0.25,
        micro_batch=4,
        hosts=1,
        simulator_cores=4,
        optimiser="offload",
        limits=Limits(grace=60.0),
    ),
    "cluster": _GPUS,
    # Qwen3-VL-30B-A3B on 4 nodes of 8 A100 with 80 GB: 28 GB a GPU at 31 and 47 GB at 16
    # (`python -m vlm4vla.planner qwen3vl-30b-a3b --zero 3 --gpus 31 --batch 16`), and while a
    # worker starts 62 GB of its node's memory, eight times over.
    "4x8-a100": replace(_GPUS, workers=(16, 31), zero=3),
}


def amounts(resources: Mapping[str, float]) -> str:
    """Ray's resources in words; memory is in bytes there."""
    shown = {"CPU": 1.0, "GPU": 1.0, "memory": 2.0**30}
    units = {"memory": "GiB memory"}
    found = [
        f"{resources[name] / scale:.3g} {units.get(name, name)}"
        for name, scale in shown.items()
        if resources.get(name)
    ]
    return ", ".join(found) or "nothing"
