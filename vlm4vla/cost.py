"""What a training costs before it is run: steps, GPU-hours, episodes.

FLOPs of a sample are 6·N·positions (Kaplan et al. 2020, section 2.1), for two parts apart:
the vision tower over its patches, and the language model over image, prompt and query. N
leaves out the word embeddings (a look-up) and `lm_head` (no action reads it), and of a
mixture of experts counts those that a token visits. Attention scores, the head and what
activation checkpointing computes again are left out, as MFU's convention has it.

GPU-hours = FLOPs / (peak × MFU) / 3600, with an A100's peak and an MFU that is assumed. An
auxiliary stage's own training is not in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from torch import nn

from envs.api import Benchmark
from envs.benchmarks import benchmark
from vlm4vla.activations import vision_positions
from vlm4vla.backbones import backbone
from vlm4vla.planner import PROMPT_TOKENS
from vlm4vla.run import Run
from vlm4vla.sizes import image_tokens, meta_model

PEAK_FLOPS = 312e12
"""FLOP/s of an A100 in bf16 without sparsity: the paper's GPUs (A.2.1)."""
MFU = 0.35
"""Assumed share of the peak that model FLOPs reach; hours scale with its inverse."""
MOE_MFU = 0.15
"""Assumed for a mixture of experts, whose products are small and scattered."""
FORWARD, TO_INPUTS, TO_WEIGHTS = 2, 2, 2
"""FLOPs per parameter and position of the three products of a layer; together the 6."""
EXPERTS = ".experts."
"""In the name of a parameter that only some tokens visit."""
REPEATS = {"pi0": {"calvin": 3, "simpler": 10, "libero_10": 5}}
"""policy -> benchmark -> rollouts of each initial state: pi0 samples its actions (A.3)."""


@dataclass(frozen=True)
class Parts:
    """Parameters that a position visits: of the vision tower, and of all the rest."""

    vision: float
    language: float
    experts: bool = False


@dataclass(frozen=True)
class Cost:
    """episodes: rollouts of every evaluated checkpoint at every horizon, as the paper does."""

    steps: int
    gpu_hours: float
    episodes: int


def cost(run: Run) -> Cost:
    """Of one training; ValueError for an unknown backbone."""
    row = benchmark(run.benchmark)
    repeats = REPEATS.get(run.policy, {}).get(row.name, 1)
    steps = run.resolved(row.recipe).steps
    assert steps is not None
    return Cost(steps, gpu_hours(run), repeats * episodes(row))


def gpu_hours(run: Run) -> float:
    """Estimated hours of all GPUs together (an action expert beside the backbone left out)."""
    mfu = MOE_MFU if parts(run.backbone).experts else MFU
    return training_flops(run) / (PEAK_FLOPS * mfu) / 3600


def samples(run: Run) -> int:
    """Samples seen in training, repeats included: steps × global batch."""
    recipe = benchmark(run.benchmark).recipe
    resolved = run.resolved(recipe)
    assert resolved.steps is not None and resolved.batch is not None
    return resolved.steps * resolved.batch


def training_flops(run: Run) -> float:
    """Of all steps. Frozen vision is only run forward: nothing below it is trained."""
    row = backbone(run.backbone)
    size = parts(row.name)
    tokens = image_tokens(row, run.image_px, run.profile) + PROMPT_TOKENS
    vision = _factor("vision" in run.freeze, first=True) * size.vision
    language = _factor("llm" in run.freeze, first=False) * size.language
    return samples(run) * (vision * vision_positions(row, run.image_px) + language * tokens)


def _factor(frozen: bool, first: bool) -> int:
    """FLOPs per parameter and position. first: no gradient is wanted below the part."""
    if not frozen:
        return FORWARD + TO_INPUTS + TO_WEIGHTS
    return FORWARD if first else FORWARD + TO_INPUTS


@cache
def parts(name: str) -> Parts:
    """The sizes of a row, counted on the meta device."""
    row = backbone(name)
    vlm = meta_model(row)
    left_out = {*_names(row.modules.embedding, vlm), *_names(row.modules.lm_head, vlm)}
    visited = {n: _visited(n, p, vlm) for n, p in vlm.named_parameters() if n not in left_out}
    tower = _names(row.modules.vision, vlm)
    vision = sum(size for n, size in visited.items() if n in tower)
    experts = any(EXPERTS in name for name in visited)
    return Parts(vision, sum(visited.values()) - vision, experts)


def _names(module: str, vlm: nn.Module) -> set[str]:
    return {n for n, _ in vlm.named_parameters() if n.startswith(f"{module}.")}


def _visited(name: str, parameter: nn.Parameter, vlm: nn.Module) -> float:
    """Numbers of a parameter that one token meets: a share of the experts, all of the rest."""
    if EXPERTS not in name:
        return float(parameter.numel())
    config = vlm.config.get_text_config()  # type: ignore[union-attr, operator]
    return parameter.numel() * config.num_experts_per_tok / config.num_experts


def episodes(row: Benchmark) -> int:
    """Checkpoints × horizons × tasks × initial states (3.3); confirmation comes on top."""
    return len(row.recipe.checkpoints) * len(row.horizons) * len(row.tasks) * row.trials
