"""A trained policy as two files, `policy.safetensors` and `policy.json`, and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from envs.api import ActionSpec, Benchmark
from vlm4vla.data.normalise import Normaliser
from vlm4vla.policies import VlmPolicy, build_policy
from vlm4vla.run import Run

WEIGHTS = "policy.safetensors"
DESCRIPTION = "policy.json"
TOKENIZER = "tokenizer.json"


def save_policy(
    policy: VlmPolicy,
    run: Run,
    benchmark: Benchmark,
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write weights (every key, tied ones too) and what is needed to use them.

    weights: a copy of the policy's in host memory, made here if absent.
    """
    if weights is None:
        # safetensors refuses tensors that share memory, so tied weights get copies of their own.
        state = policy.state_dict()
        weights = {n: t.detach().to("cpu", copy=True).contiguous() for n, t in state.items()}
    save_file(dict(weights), folder / WEIGHTS)
    normaliser = policy.normaliser
    description = {
        "run": dataclasses.asdict(run),
        "chunk": benchmark.chunk,
        "action_spec": dataclasses.asdict(benchmark.action_spec),
        "overrides": dict(benchmark.recipe.overrides),
        "normaliser": normaliser.to_json() if isinstance(normaliser, Normaliser) else None,
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1))


def load_policy(folder: Path, description: str = DESCRIPTION, weights: str = WEIGHTS) -> VlmPolicy:
    """The policy in a folder, ready to act; FileNotFoundError when a file is missing.

    description, weights: names of the two files. A tokenizer in the folder is used.
    """
    told = json.loads((folder / description).read_text())
    fields, normaliser = told["run"], told["normaliser"]
    policy = build_policy(
        Run(**{**fields, "freeze": tuple(fields["freeze"])}),
        told["chunk"],
        normaliser=Normaliser.from_json(normaliser) if normaliser else None,
        weights=folder / weights,
        overrides=told.get("overrides"),
        action_spec=ActionSpec(**told["action_spec"]),
        source=folder if (folder / TOKENIZER).exists() else None,
    )
    return policy.eval()
