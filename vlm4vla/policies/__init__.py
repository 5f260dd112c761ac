"""Policies: what turns a backbone into something that acts, one file per kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from envs.api import ActionSpec, did_you_mean
from vlm4vla import weights as stored
from vlm4vla.backbones import Backbone, backbone
from vlm4vla.policies.action_query import ActionQueryPolicy
from vlm4vla.policies.base import Normaliser, VlmPolicy
from vlm4vla.policies.openvla import OpenVlaPolicy
from vlm4vla.policies.pi0 import Pi0Policy
from vlm4vla.recipe import RECIPES
from vlm4vla.run import Run
from vlm4vla.stages import stage_of
from vlm4vla.tokenizers import tokenizer_of

POLICIES: Mapping[str, type[VlmPolicy]] = {
    "action_query": ActionQueryPolicy,
    "openvla": OpenVlaPolicy,
    "pi0": Pi0Policy,
}


def build_policy(
    run: Run,
    chunk: int,
    normaliser: Normaliser | None = None,
    weights: str | Path | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    action_spec: ActionSpec | None = None,
    source: str | Path | None = None,
    stage: Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> VlmPolicy:
    """The policy of a run, frozen as the run says; random parts are seeded by `run.seed`.

    overrides: fields of the profile's Recipe that the benchmark sets otherwise.
    weights: a safetensors file of a whole trained policy (no backbone weights are read then).
    source: a local folder of the backbone's weights and tokenizer, instead of the hub.
    stage: a safetensors file of the auxiliary stage that the run starts from.
    """
    if run.policy not in POLICIES:
        raise did_you_mean("policy", run.policy, POLICIES)
    row = backbone(run.backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        if weights is not None:
            vlm = stored.unfilled(row, dtype)
        elif run.aux is not None:
            vlm = _staged(run.aux, row, stage, dtype)
        elif run.init == "scratch":
            vlm = stored.from_scratch(row, dtype)
        else:
            vlm = stored.pretrained(row, source, dtype)
        policy = POLICIES[run.policy](
            row,
            vlm,
            tokenizer_of(row, source),
            dataclasses.replace(RECIPES[run.profile], **(overrides or {})),
            chunk,
            prompt=run.prompt,
            image_px=run.image_px,
            normaliser=normaliser,
            action_spec=action_spec,
        )
    if weights is not None:
        stored.load_weights(policy, load_file(weights), str(weights))
    policy.freeze(run.freeze)
    return policy


def _staged(aux: str, row: Backbone, file: Path | None, dtype: torch.dtype) -> Any:
    """The backbone as its stage left it: trained here, or published."""
    if file is not None:
        return stored.staged(row, file, dtype)
    stage = stage_of(aux)
    if stage.weights is None:
        raise ValueError(
            f"the run starts from the auxiliary stage {aux}, whose weights were not passed: "
            "train the stage first, or train the run through the platform, which does"
        )
    theirs = dataclasses.replace(row, name=stage.name, hub_id=stage.weights)
    return stored.pretrained(theirs, dtype=dtype)


__all__ = ["POLICIES", "ActionQueryPolicy", "Normaliser", "VlmPolicy", "build_policy"]
