"""Which backbones the GPUs of a cluster hold while they train, asked before any of them starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from vlm4vla.backbones import backbone
from vlm4vla.planner import PRECISION_BYTES, RESERVE, Setup, plan, words_of
from vlm4vla.sizes import count, meta_model

ANSWERING = 1_500_000_000
"""Bytes that a replica takes beside its policy's weights: activations of a batch, CUDA itself.
Assumed."""
COUNTS = (*range(2, 9), 16, 32)
"""Numbers of workers that a refusal looks through for one that fits."""


class Spread(Protocol):
    """What is asked of a cluster: `vla_platform.cluster.Cluster` is one.

    gpu_gb: memory of a GPU in 1e9 bytes, of which a worker has the share `gpus_per_worker` and a
    replica, which answers rollouts in the precision `answers_in`, `gpu_share`.
    """

    @property
    def workers(self) -> tuple[int, int]: ...
    @property
    def gpus_per_worker(self) -> float: ...
    @property
    def gpu_gb(self) -> float: ...
    @property
    def gpu_share(self) -> float: ...
    @property
    def answers_in(self) -> str: ...
    def engine(self) -> dict[str, Any]: ...


def that_fit(names: Iterable[str], cluster: Spread) -> list[str]:
    """Those whose training and policy fit, in their order; all where nothing is on GPUs."""
    names = list(names)
    lacking = _lacking(names, setup_of(cluster), _room(cluster, cluster.gpu_gb))
    silent = _silent(names, cluster, cluster.gpu_gb)
    return [name for name in names if name not in lacking and name not in silent]


def require(
    names: Sequence[str],
    cluster: Spread,
    presets: Mapping[str, Spread],
    image_px: int = 224,
    freeze: Sequence[str] = (),
) -> None:
    """ValueError that names the backbones which do not fit, and what would hold them."""
    wanted = replace(setup_of(cluster), image_px=image_px, freeze=tuple(freeze))
    room = _room(cluster, cluster.gpu_gb)
    if lacking := _lacking(names, wanted, room):
        takes = ", ".join(f"{name} takes {size:.0f} GB" for name, size in lacking.items())
        remedies = _remedies(list(lacking), wanted, cluster, presets)
        raise ValueError(
            f"{takes} of a GPU, and a worker has {room:g} ({words_of(wanted)}): take "
            f"{' or '.join([*remedies, 'other backbones'])}; --gpu-gb says what yours have"
        )
    if silent := _silent(names, cluster, cluster.gpu_gb):
        takes = ", ".join(f"{name} takes {size:.0f} GB" for name, size in silent.items())
        room = min(1.0, cluster.gpu_share) * cluster.gpu_gb
        raise ValueError(
            f"{takes} of a GPU while it answers rollouts in {cluster.answers_in}, and a replica "
            f"has {room:g}: take a preset that gives it a whole GPU, or other backbones; "
            "--gpu-gb says what yours have"
        )


def setup_of(cluster: Spread) -> Setup:
    """How a cluster trains with its fewest workers, which is when each holds the most."""
    engine = cluster.engine()
    return Setup(
        zero=engine["zero"],
        gpus=cluster.workers[0],
        batch=engine["micro_batch"] or 1,
        precision=engine["precision"],
        checkpointing=engine["checkpointing"],
        offload=engine["optimiser"] == "offload",
    )


def _lacking(names: Sequence[str], setup: Setup, room: float) -> dict[str, float]:
    """What each of those that do not fit takes of a GPU at the peak of a step, in 1e9 bytes."""
    if room == float("inf"):
        return {}
    sizes = {
        name: (plan(backbone(name), setup).total + RESERVE) / 1e9 for name in dict.fromkeys(names)
    }
    return {name: size for name, size in sizes.items() if size > room}


def _silent(names: Sequence[str], cluster: Spread, gpu_gb: float) -> dict[str, float]:
    """What the policy of each that does not fit takes of a replica's GPU, in 1e9 bytes."""
    share = min(1.0, cluster.gpu_share)
    if not share:
        return {}
    width = PRECISION_BYTES[cluster.answers_in]
    sizes = {
        name: (width * count(meta_model(backbone(name)).parameters()) + ANSWERING) / 1e9
        for name in dict.fromkeys(names)
    }
    return {name: size for name, size in sizes.items() if size > share * gpu_gb}


def _room(cluster: Spread, gpu_gb: float) -> float:
    """1e9 bytes that a worker has; no limit where it has no GPU."""
    share = min(1.0, cluster.gpus_per_worker)
    return share * gpu_gb if share else float("inf")


def _remedies(
    names: Sequence[str], wanted: Setup, cluster: Spread, presets: Mapping[str, Spread]
) -> list[str]:
    """Flags with which all of them would fit on GPUs of this size."""
    enough = [
        count
        for count in COUNTS
        if count > wanted.gpus and _hold(names, replace(wanted, gpus=count), cluster, cluster)
    ]
    found = [f"--workers {n} {max(n, cluster.workers[1])}" for n in enough[:1]]
    return found + [
        f"--preset {name}"
        for name, other in presets.items()
        if other.gpus_per_worker and _hold(names, _with(wanted, other), other, cluster)
    ]


def _with(wanted: Setup, other: Spread) -> Setup:
    return replace(setup_of(other), image_px=wanted.image_px, freeze=wanted.freeze)


def _hold(names: Sequence[str], setup: Setup, other: Spread, cluster: Spread) -> bool:
    room = _room(other, cluster.gpu_gb)
    if any(_lacking([name], setup, room) for name in names):  # the first ends it
        return False
    return not _silent(names, other, cluster.gpu_gb)
