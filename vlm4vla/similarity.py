"""Figure 5's claim, measured: how alike a policy and a vision-language model see the same scenes.

The paper draws two ways of learning that run together and part at some step, without numbers.
Here linear CKA (Kornblith et al. 2019) compares every layer of a policy's backbone, at each
checkpoint, with the same layer of a vision-language model. HSIC is estimated without bias
(Song et al. 2012; Nguyen et al. 2021), as full-size models are wider than there are scenes,
where the plain estimate tends to 1 for anything.

Shape suffixes: N scenes, B batch, T tokens, D and E widths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlm4vla import weights as stored
from vlm4vla.aux.sft import Answering
from vlm4vla.data.dataset import MANIFEST, SCHEMA, Manifest, read_shard
from vlm4vla.data.frames import decode
from vlm4vla.export import load_policy
from vlm4vla.prompts import to_device
from vlm4vla.vlm import VisionLanguageModel

PARTS = ("vision", "language")
SHARDS = 8
"""Shards that scenes are read from, at most: a large dataset is not read as a whole."""
TOGETHER = 32
Layer = tuple[str, int]
Features = Mapping[Layer, Float[Tensor, "N D"]]
Scenes = tuple[list[np.ndarray], list[str]]


def linear_cka(a: Float[Tensor, "N D"], b: Float[Tensor, "N E"]) -> float:
    """1 for features equal up to rotation and scale, about 0 for unrelated ones (or below).

    ValueError for fewer than four scenes, and nan when all scenes look the same to one.
    """
    if len(a) != len(b) or len(a) < 4:
        raise ValueError(f"CKA compares 4 or more scenes, not {len(a)} with {len(b)}")
    k, l = (_kernel(features) for features in (a, b))  # noqa: E741
    scale = (_hsic(k, k) * _hsic(l, l)).sqrt()
    return float(_hsic(k, l) / scale)


def _kernel(features: Float[Tensor, "N D"]) -> Float[Tensor, "N N"]:
    features = features.double()
    features = features - features.mean(0)  # changes nothing but the rounding
    return (features @ features.T).fill_diagonal_(0)


def _hsic(k: Float[Tensor, "N N"], l: Float[Tensor, "N N"]) -> Tensor:  # noqa: E741
    """Song et al. 2012, equation 5, without its common factor; diagonals are 0."""
    n = len(k)
    sums = k.sum() * l.sum() / ((n - 1) * (n - 2))
    return (k * l).sum() + sums - 2 / (n - 2) * (k.sum(0) @ l.sum(0))


def compare(
    policies: Mapping[int, Path],
    dataset: Path,
    references: Mapping[str, Path | None],
    frames: int = 256,
) -> Iterator[tuple[str, int, list[dict[str, Any]]]]:
    """(reference, step, rows) of one run's checkpoints, each layer a row.

    policies: folders by step. dataset: the run's prepared demonstrations, whose frames are the
    scenes. references: weights files of auxiliary stages by name, None for the published model.
    A row: part, layer (from 1), similarity, and floor: the same of a random model, which sees
    the same scenes and is therefore not at 0.
    """
    first = load_policy(next(iter(policies.values())))
    scenes = _scenes(dataset, frames)
    models = {name: features(_model(first, file), scenes) for name, file in references.items()}
    random = features(_random(first), scenes)
    for step, folder in policies.items():
        mine = features(load_policy(folder), scenes)
        for name, theirs in models.items():
            yield name, step, [_row(layer, mine, theirs, random) for layer in mine]


def _row(layer: Layer, mine: Features, theirs: Features, random: Features) -> dict[str, Any]:
    part, number = layer
    found = {"part": part, "layer": number, "similarity": linear_cka(mine[layer], theirs[layer])}
    return {**found, "floor": linear_cka(random[layer], theirs[layer])}


def _model(policy: VisionLanguageModel, file: Path | None) -> Answering:
    """The policy's backbone as published, or as a stage left it, with the policy's prompts."""
    row, dtype = policy.row, torch.float32
    vlm = stored.pretrained(row, None, dtype) if file is None else stored.staged(row, file, dtype)
    return Answering(row, vlm, policy.tokenizer, policy.recipe, policy.image_px)


def _random(policy: VisionLanguageModel) -> Answering:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vlm = stored.from_scratch(policy.row)
    return Answering(policy.row, vlm, policy.tokenizer, policy.recipe, policy.image_px)


def _scenes(dataset: Path, frames: int) -> Scenes:
    """Pictures (uint8 [H, W, 3]) and instructions, evenly over a dataset."""
    shards = Manifest.from_bytes((dataset / MANIFEST).read_bytes()).shards
    chosen = shards[:: -(-len(shards) // SHARDS)]
    each, pictures, texts = -(-frames // len(chosen)), list[np.ndarray](), list[str]()
    for shard in chosen:
        table = read_shard(dataset, shard, SCHEMA)
        rows = table.take(np.linspace(0, len(table) - 1, min(each, len(table)), dtype=int))
        pictures += map(decode, rows["image"].to_pylist())
        texts += rows["instruction"].to_pylist()
    return pictures[:frames], texts[:frames]


@torch.no_grad()
def features(model: VisionLanguageModel, scenes: Scenes) -> Features:
    """What each block of the vision tower and of the language model gives for each scene.

    The mean over its patches or real tokens, after the instruction as a question and without
    an action query, so that a policy and a model that never acts are asked the same.
    """
    model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    pictures, texts = scenes
    parts = [
        _batch(model, pictures[first : first + TOGETHER], texts[first : first + TOGETHER])
        for first in range(0, len(texts), TOGETHER)
    ]
    return {layer: torch.cat([part[layer] for part in parts]) for layer in blocks(model)}


def _batch(
    model: VisionLanguageModel, pictures: Sequence[np.ndarray], texts: Sequence[str]
) -> dict[Layer, Tensor]:
    images = np.concatenate([model.resize(np.stack([picture])) for picture in pictures])
    inputs = to_device(model.prepare_text(images, texts), model.device)
    real, found = inputs["attention_mask"][..., None], dict[Layer, Tensor]()
    with ExitStack() as stack:
        for layer, block in blocks(model).items():

            def keep(_block: nn.Module, _args: Any, out: Any, layer: Layer = layer) -> None:
                out = out[0] if isinstance(out, tuple) else out
                found[layer] = _pooled(layer[0], out.float(), real, len(texts)).cpu()

            stack.callback(block.register_forward_hook(keep).remove)
        model.family.hidden(model.vlm, inputs, model.recipe)
    return found


def _pooled(part: str, out: Tensor, real: Tensor, scenes: int) -> Float[Tensor, "B D"]:
    """Towers that pack the patches of a batch keep them in the order of the images."""
    if part == "vision":
        return out.reshape(scenes, -1, out.shape[-1]).mean(1)
    return (out * real).sum(1) / real.sum(1)


def blocks(model: VisionLanguageModel) -> dict[Layer, nn.Module]:
    """The transformer blocks of both parts, numbered from 1."""
    found: dict[Layer, nn.Module] = {}
    for part in PARTS:
        tower = model.vlm.get_submodule(getattr(model.row.modules, part))
        lists = [
            module
            for name, module in tower.named_modules()
            if isinstance(module, nn.ModuleList) and name.split(".")[-1] in ("layers", "blocks")
        ]
        found |= {(part, number): block for number, block in enumerate(chain(*lists), 1)}
    return found
