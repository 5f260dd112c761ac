"""The authors' released checkpoints, renamed into ours so that they can be evaluated here.

Their file is the state dict of a Lightning module: `action_token`, `act_head.*` and
`backbone.*`, the last in the layout of whichever transformers they trained with.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from envs.api import Benchmark
from vlm4vla.backbones import Backbone, backbone
from vlm4vla.data.normalise import Normaliser, Statistics
from vlm4vla.data.profiles import normalisation
from vlm4vla.export import save_weights
from vlm4vla.run import Run
from vlm4vla.sizes import meta_head, meta_model, words
from vlm4vla.weights import check_keys

logger = logging.getLogger(__name__)

Rules = tuple[tuple[str, str], ...]

_WRAPPERS = re.compile(
    r"^(?:(?:_forward_module|module|model)\.)+(?=backbone\.|act_head\.|action_t)"
)
_HEAD: Rules = (
    (r"^action_token$", "query"),
    (r"^act_head\.mlp\.", "head.trunk."),
    (r"^act_head\.actions\.mlp\.", "head.arm."),
    (r"^act_head\.gripper\.mlp\.", "head.gripper."),
)
_BACKBONE: Mapping[str, Rules] = {
    "qwen_vl": (
        (r"^visual\.", "model.visual."),
        (r"^model\.(embed_tokens|layers|norm)\.", r"model.language_model.\1."),
    ),
    "paligemma": (
        (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
        (r"^model\.vision_tower\.vision_model\.", "model.vision_tower."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^language_model\.lm_head\.", "lm_head."),
    ),
    "kosmos2": (),
}
"""Older layouts of transformers -> today's; names of today's layout match no rule."""
_BUFFERS = ("position_ids", "inv_freq", "embed_positions.weights")
"""Constants that older versions stored and that are computed from the config."""
_TRANSPOSED = re.compile(r"\.mlp\.experts\.(gate_up_proj|down_proj)$")
"""Experts were [experts, in, out] when the authors trained; today they are [.., out, in]."""


def imported(row: Backbone, chunk: int, source: Path) -> dict[str, Tensor]:
    """Their file as the weights that our policy has, none of which share memory.

    source: their checkpoint, `.safetensors` or torch's own format (read without unpickling
    code). ValueError names every key that is missing, unknown or of another shape.
    """
    weights = renamed(row, read(source))
    check_keys(policy_state(row, chunk), weights, str(source))
    logger.info("%s: %d tensors of %s imported", row.name, len(weights), source)
    return {name: tensor.contiguous().clone() for name, tensor in weights.items()}


def released_policy(
    name: str, benchmark: Benchmark, source: Path, folder: Path, statistics: Path | None
) -> None:
    """Write a released file as a policy's folder, with the `official` profile's data handling.

    statistics: the dataset's, as JSON: ours, or `{dataset: {"action": {"q01": …}}}` as RLDS
    loaders save it. ValueError when the benchmark's normalisation needs one and has none.
    """
    row = backbone(name)
    run = Run(row.name, benchmark.name, profile="official").resolved(benchmark.recipe)
    kind = normalisation(benchmark.recipe, run.profile)
    if "quantile" in kind and statistics is None:
        raise ValueError(
            f"{benchmark.name}'s actions are normalised by quantiles: give the training data's "
            "with --statistics FILE"
        )
    folder.mkdir(parents=True, exist_ok=True)
    weights = imported(row, benchmark.chunk, source)
    save_weights(weights, run, benchmark, Normaliser(kind, _statistics(statistics)), folder)


def _statistics(path: Path | None) -> Statistics:
    zeros = [0.0] * 7
    names = {f.name: f.name for f in dataclasses.fields(Statistics)}
    theirs = {**names, "minimum": "min", "maximum": "max"}
    found: Any = json.loads(path.read_text()) if path else dict.fromkeys(names, zeros)
    if len(found) == 1:
        found = next(iter(found.values()))["action"]
    try:
        columns = {n: found[n] if n in found else found[theirs[n]] for n in names}
    except KeyError as error:
        raise ValueError(f"{path} has no {error} of the actions") from None
    return Statistics.from_json(columns)


def read(source: Path) -> Mapping[str, Tensor]:
    """The tensors of a released file; FileNotFoundError if there is none."""
    if not source.is_file():
        raise FileNotFoundError(f"no released checkpoint at {source}: download it first")
    if source.suffix == ".safetensors":
        return load_file(source)
    stored = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    return next((stored[key] for key in ("state_dict", "module") if key in stored), stored)


def renamed(row: Backbone, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under our names; names that no rule knows are kept, to be reported."""
    result = {}
    for name, tensor in weights.items():
        ours = our_name(row, name)
        if ours.endswith(_BUFFERS):
            continue
        result[ours] = tensor.transpose(1, 2) if _TRANSPOSED.search(ours) else tensor
    return result


def our_name(row: Backbone, name: str) -> str:
    """`backbone.visual.…` -> `vlm.model.visual.…`, `act_head.mlp.…` -> `head.trunk.…`."""
    name = _WRAPPERS.sub("", name)
    if not name.startswith("backbone."):
        return _apply(_HEAD, name)
    return "vlm." + _apply(_BACKBONE[row.family], name.removeprefix("backbone."))


def _apply(rules: Rules, name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def policy_state(row: Backbone, chunk: int) -> dict[str, Tensor]:
    """Names and shapes of a whole policy of the row, without storage; ties kept."""
    vlm = meta_model(row)
    policy = nn.Module()
    policy.vlm, policy.head = vlm, meta_head(vlm, row, chunk)
    policy.query = nn.Parameter(torch.empty(words(vlm, row).shape[1], device="meta"))
    return policy.state_dict(keep_vars=True)
