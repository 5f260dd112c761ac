"""Pretrains a tiny vision-language model on questions about pictures of the tabletop.

The model is asked in its family's own format and learns the answer's tokens alone. Captions
that name every place come first: in them the word that asks and the place that answers are
neighbours, which is how words come to mean things; questions then take minutes, not hours.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from envs import tabletop
from envs.tabletop import Scene
from vlm4vla.aux.muon import Muon
from vlm4vla.aux.tabletop_vqa import KINDS, Question, examples
from vlm4vla.backbones import backbone as backbone_row
from vlm4vla.families import Inputs
from vlm4vla.policies import VlmPolicy, build_policy
from vlm4vla.run import Run
from vlm4vla.tokenizers import TINY_CELLS, tiny_tokenizer

log = logging.getLogger(__name__)

UNSEEN = 1_000_000
"""Seeds of examples from here on are never trained on."""
GATE = "point"


@dataclass(frozen=True)
class Plan:
    """How long and how fast. Steps count batches of `batch` pictures, one question each.

    captions: steps that see captions alone, at the start. matrix_lr: Muon's, for hidden
    matrices. lr: AdamW's, for embeddings, norms and biases. decay: share of the steps, at the
    end, over which both fall to zero. gate: accuracy on pointing questions below which another
    seed is tried, at most `tries` times.
    """

    steps: int = 3000
    captions: int = 600
    batch: int = 64
    matrix_lr: float = 1e-2
    lr: float = 4e-3
    warmup: int = 50
    decay: float = 0.5
    gate: float = 0.85
    tries: int = 3


class StuckError(Exception):
    """No seed passed the gate."""


@dataclass(frozen=True)
class Pretrained:
    """A trained model with the seed that passed and accuracies on unseen scenes by kind."""

    policy: VlmPolicy
    seed: int
    accuracy: Mapping[str, float]


def pretrain(backbone: str, seed: int = 0, plan: Plan | None = None) -> Pretrained:
    """Train until a seed passes the gate: `seed`, `seed` + 1, …; StuckError if none does.

    ValueError for a full-size row.
    """
    plan = plan or Plan()
    if not backbone_row(backbone).tiny:
        raise ValueError(f"{backbone!r} is not a tiny row: its weights come from the hub")
    for attempt in range(seed, seed + plan.tries):
        policy = train(backbone, attempt, plan)
        round_to_bf16(policy.vlm)
        reached = accuracy(policy, kinds=(GATE,))[GATE]
        log.info("%s, seed %d: %.1f%% on pointing", backbone, attempt, 100 * reached)
        if reached >= plan.gate:
            return Pretrained(policy, attempt, accuracy(policy))
    raise StuckError(
        f"{backbone}: {plan.tries} seeds from {seed} on stayed below {plan.gate:.0%} on pointing "
        f"questions (the last reached {reached:.0%}); train longer or start elsewhere"
    )


def train(backbone: str, seed: int, plan: Plan) -> VlmPolicy:
    """One training from random weights. The policy's query and head are left untouched."""
    policy = build_policy(Run(backbone, "tabletop", init="scratch", seed=seed), chunk=1)
    optimisers = optimisers_of(policy, plan)
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]
    peaks = [group["lr"] for group in groups]
    for step, batch in enumerate(_batches(seed, plan)):
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * rate(step, plan)
        loss = _step(policy, batch, optimisers)
        if (step + 1) % 200 == 0:
            log.info("%s, seed %d: step %d, loss %.3f", backbone, seed, step + 1, loss)
    return policy


def rate(step: int, plan: Plan) -> float:
    """Share of the peak learning rate: warm-up, plateau, straight down to zero."""
    left = (plan.steps - step) / (plan.steps * plan.decay)
    return min(1.0, (step + 1) / plan.warmup, left)


def optimisers_of(policy: VlmPolicy, plan: Plan) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for hidden matrices, AdamW for everything else of the vision-language model.

    Muon (Jordan et al. 2024) reaches in one tenth of the steps what AdamW does here.
    """
    named = dict(policy.vlm.named_parameters())
    matrices = {name: p for name, p in named.items() if is_hidden_matrix(name, p)}
    rest = [p for name, p in named.items() if name not in matrices]
    muon = Muon(matrices.values(), lr=plan.matrix_lr, weight_decay=0.01)
    adam = torch.optim.AdamW(rest, lr=plan.lr, betas=(0.9, 0.95), weight_decay=0.01)
    return muon, adam


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Neither an embedding, a table of positions or latents, nor the vocabulary's head."""
    tables = ("embed", "lm_head", "latent")
    return parameter.ndim in (2, 3) and not any(word in name for word in tables)


def _step(
    policy: VlmPolicy,
    batch: Sequence[tuple[Scene, Question]],
    optimisers: Iterable[torch.optim.Optimizer],
) -> float:
    loss, _ = policy.text_loss(ask_about(policy, batch))
    policy.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(policy.vlm.parameters(), 1.0)
    for optimiser in optimisers:
        optimiser.step()
    return loss.item()


def _batches(seed: int, plan: Plan) -> Iterator[list[tuple[Scene, Question]]]:
    captions = min(plan.captions, plan.steps)
    stages = (("describe", captions), (None, plan.steps - captions))
    for kind, steps in stages:
        source = examples(2 * seed + (kind is None), kind)
        for _ in range(steps):
            yield list(itertools.islice(source, plan.batch))


def ask_about(policy: VlmPolicy, batch: Sequence[tuple[Scene, Question]]) -> Inputs:
    """Pictures of the scenes and their questions and answers, in the family's own format."""
    return policy.prepare_text(
        pictures(policy, [scene for scene, _ in batch]),
        [question.text for _, question in batch],
        [question.answer for _, question in batch],
    )


def pictures(policy: VlmPolicy, scenes: Iterable[Scene]) -> np.ndarray:
    """uint8 [B, S, S, 3] at the size the model sees; one by one, which stays in the cache."""
    return np.concatenate([policy.resize(tabletop.render(scene)[None]) for scene in scenes])


def round_to_bf16(vlm: nn.Module) -> None:
    """Round weights to what is shipped, so that what is measured is what is shipped."""
    with torch.no_grad():
        for parameter in vlm.parameters():
            parameter.copy_(parameter.bfloat16())


@torch.no_grad()
def accuracy(
    policy: VlmPolicy,
    seed: int = UNSEEN,
    count: int = 256,
    kinds: Iterable[str] = tuple(KINDS),
) -> dict[str, float]:
    """Share of unseen questions answered right, by kind.

    An answer counts when every word of it does; captions are scored place by place.
    """
    return {kind: _accuracy(policy, seed, count, kind) for kind in kinds}


def _accuracy(policy: VlmPolicy, seed: int, count: int, kind: str) -> float:
    inputs = ask_about(policy, list(itertools.islice(examples(seed, kind), count)))
    labels = inputs["labels"][:, 1:]
    right = policy.lm_logits(inputs)[:, :-1].argmax(-1) == labels
    asked = labels >= 0
    if kind == "describe":
        return float(right[asked & _is_cell(labels)].float().mean())
    return float((right | ~asked).all(1).float().mean())


def _is_cell(ids: Tensor) -> Tensor:
    cells = torch.tensor([tiny_tokenizer().token_id(cell) for cell in TINY_CELLS])
    return torch.isin(ids, cells)
