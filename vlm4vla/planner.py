"""Bytes per GPU of fine-tuning a row, and which set-ups fit (memory planner).

Parameters are counted on the meta device. Activations are counted there too: one layer of
each kind runs without storage while the tensors that autograd would keep are added up.
`python -m vlm4vla.planner qwen3vl-30b-a3b --gpus 8 --gpu-gb 80 --zero 2`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from vlm4vla.activations import activation_bytes
from vlm4vla.backbones import Backbone, backbone
from vlm4vla.sizes import count, image_tokens, meta_head, meta_model, optimised, words

PRECISION_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
BUCKET = 500_000_000
"""Numbers in each of DeepSpeed's two communication buckets (its default)."""
GATHERED = 1_000_000_000
"""Numbers of whole weights that ZeRO-3 keeps gathered at a time (its default)."""
RESERVE = 3 * 2**30
"""CUDA context, communication library and allocator fragments, which no count sees."""
PROMPT_TOKENS = 48
"""Tokens beside the image: Qwen's long prompt, a long instruction and the query."""


@dataclass(frozen=True)
class Setup:
    """How a row is trained.

    zero: DeepSpeed stage 0-3. gpus: data-parallel workers. batch: samples per GPU and forward
    pass (the rest of a global batch is accumulated). checkpointing: recompute activations.
    offload: the optimiser's state lies in the host's memory. freeze: groups that do not train.
    """

    zero: int = 2
    gpus: int = 8
    batch: int = 1
    precision: str = "bf16"
    checkpointing: bool = True
    image_px: int = 224
    prompt_tokens: int = PROMPT_TOKENS
    offload: bool = False
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.zero not in range(4) or self.precision not in PRECISION_BYTES:
            raise ValueError(
                f"ZeRO stage {self.zero} with {self.precision!r}: the stage must be 0, 1, 2 or 3 "
                f"and the precision one of {', '.join(PRECISION_BYTES)}."
            )
        if self.gpus < 1 or self.batch < 1:
            raise ValueError(f"{self.gpus} GPUs with {self.batch} samples each: both must be >= 1.")


@dataclass(frozen=True)
class Plan:
    """Bytes on each GPU at the peak of a step, by what holds them."""

    weights: int
    gradients: int
    optimiser: int
    activations: int
    buffers: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))

    def fits(self, gpu_bytes: int) -> bool:
        return self.total + RESERVE <= gpu_bytes


def plan(row: Backbone, setup: Setup) -> Plan:
    """Memory of fine-tuning with AdamW."""
    vlm = meta_model(row)
    head = meta_head(vlm, row)
    trained = optimised(vlm, head, row, setup.freeze)
    query = words(vlm, row).shape[1]
    resident = count(vlm.parameters()) + query + count(head.parameters())
    width = PRECISION_BYTES[setup.precision]
    tokens = image_tokens(row, setup.image_px) + setup.prompt_tokens
    activations = activation_bytes(vlm, row, tokens, setup.image_px, width, setup.checkpointing)
    return Plan(
        weights=resident * width // _shards(setup, 3),
        gradients=trained * width // _shards(setup, 2),
        optimiser=trained * _optimiser_bytes(setup) // _shards(setup, 1),
        activations=activations * setup.batch,
        buffers=_buffers(setup, resident, width),
    )


def _shards(setup: Setup, from_stage: int) -> int:
    """Parts that ZeRO cuts a state into: weights from stage 3, gradients 2, optimiser 1."""
    return setup.gpus if setup.zero >= from_stage else 1


def _optimiser_bytes(setup: Setup) -> int:
    """Per number: AdamW's two moments, and in 16 bits the fp32 weights and gradients of a step."""
    if setup.offload:
        return 0
    return 8 if setup.precision == "fp32" else 16


def _buffers(setup: Setup, parameters: int, width: int) -> int:
    """DeepSpeed's reduce and gather buckets, and what stage 3 gathers; alone, none."""
    if setup.gpus == 1 or setup.zero == 0:
        return 0
    gathered = min(GATHERED, parameters) if setup.zero == 3 else 0
    return (2 * min(BUCKET, parameters) + gathered) * width


def fitting(row: Backbone, wanted: Setup, gpu_bytes: int) -> Iterator[tuple[Setup, Plan]]:
    """Set-ups near `wanted` that fit: a higher stage first, then more GPUs."""
    for gpus in (wanted.gpus, 2 * wanted.gpus, 4 * wanted.gpus, 8 * wanted.gpus):
        for zero in range(wanted.zero, 4):
            setup = dataclasses.replace(wanted, gpus=gpus, zero=zero)
            made = plan(row, setup)
            if made.fits(gpu_bytes):
                yield setup, made


def report(row: Backbone, setup: Setup, gpu_gb: float) -> str:
    """What a person reads: the parts, whether they fit, and what does if not."""
    gpu_bytes = int(gpu_gb * 1e9)
    made = plan(row, setup)
    lines = [f"{row.name}, {words_of(setup)}, {gpu_gb:g} GB each:"]
    lines += [f"  {n:<12}{b / 1e9:8.1f} GB" for n, b in dataclasses.asdict(made).items()]
    lines += [f"  {'reserve':<12}{RESERVE / 1e9:8.1f} GB"]
    verdict = "fits" if made.fits(gpu_bytes) else "does not fit"
    lines += [f"  {'total':<12}{(made.total + RESERVE) / 1e9:8.1f} GB: {verdict}"]
    return "\n".join([*lines, *([] if made.fits(gpu_bytes) else _advice(row, setup, gpu_bytes))])


def _advice(row: Backbone, setup: Setup, gpu_bytes: int) -> list[str]:
    found = [
        f"what fits: {words_of(option)} ({(made.total + RESERVE) / 1e9:.1f} GB)"
        for option, made in fitting(row, setup, gpu_bytes)
    ]
    return found or ["nothing near it fits: use larger GPUs, a smaller batch or checkpointing"]


def words_of(setup: Setup) -> str:
    how = "checkpointing" if setup.checkpointing else "all activations kept"
    return (
        f"ZeRO-{setup.zero} on {setup.gpus} GPUs, {setup.batch} samples each, "
        f"{setup.precision}, {how}"
    )


def main(arguments: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser(prog="python -m vlm4vla.planner", description=__doc__)
    parser.add_argument("backbone")
    parser.add_argument("--gpu-gb", type=float, default=80.0, help="memory of a GPU in 1e9 bytes")
    parser.add_argument("--zero", type=int, default=2, choices=range(4))
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1, help="samples per GPU and forward pass")
    parser.add_argument("--precision", default="bf16", choices=list(PRECISION_BYTES))
    parser.add_argument("--image-px", type=int, default=224)
    parser.add_argument("--keep-activations", action="store_true", help="no checkpointing")
    options = parser.parse_args(arguments)
    setup = Setup(
        options.zero,
        options.gpus,
        options.batch,
        options.precision,
        not options.keep_activations,
        options.image_px,
    )
    return report(backbone(options.backbone), setup, options.gpu_gb)


if __name__ == "__main__":
    try:
        sys.stdout.write(main() + "\n")
    except ValueError as error:
        sys.exit(f"error: {error}")
