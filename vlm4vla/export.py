"""A trained policy as two files, `policy.safetensors` and `policy.json`, and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from envs.api import ActionSpec, Benchmark
from vlm4vla.data.normalise import Normaliser
from vlm4vla.engine import DTYPES
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
    known = normaliser if isinstance(normaliser, Normaliser) else None
    save_description(run, benchmark, known, folder)


def save_description(
    run: Run, benchmark: Benchmark, normaliser: Normaliser | None, folder: Path
) -> None:
    """Write what is needed to use the weights in a policy's folder."""
    description = {
        "run": dataclasses.asdict(run),
        "chunk": benchmark.chunk,
        "action_spec": dataclasses.asdict(benchmark.action_spec),
        "overrides": dict(benchmark.recipe.overrides),
        "normaliser": normaliser and normaliser.to_json(),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1))


def load_policy(
    folder: Path,
    description: str = DESCRIPTION,
    weights: str = WEIGHTS,
    *,
    precision: str = "fp32",
    device: str = "cpu",
) -> VlmPolicy:
    """The policy in a folder, ready to act; FileNotFoundError when a file is missing.

    description, weights: names of the two files. A tokenizer in the folder is used. precision:
    one of `vlm4vla.engine.DTYPES`, of everything as in training. device: torch's.
    """
    run, chunk, about = described((folder / description).read_bytes())
    source = folder if (folder / TOKENIZER).exists() else None
    dtype = DTYPES[precision]
    policy = build_policy(
        run, chunk, weights=folder / weights, source=source, dtype=dtype, **about
    ).eval()
    for parameter in policy.parameters():  # buffers stay: 16 bits would round rotary frequencies
        parameter.data = parameter.data.to(dtype)
    return policy.to(device)


def described(data: bytes) -> tuple[Run, int, dict[str, Any]]:
    """What `policy.json` says: run, chunk and the rest, as `build_policy` takes them.

    ValueError when it is damaged.
    """
    try:
        told = dict(json.loads(data))
        fields, normaliser = dict(told["run"]), told["normaliser"]
        about = {
            "normaliser": None if normaliser is None else Normaliser.from_json(normaliser),
            "overrides": dict(told.get("overrides") or {}),
            "action_spec": ActionSpec(**told["action_spec"]),
        }
        if type(told["chunk"]) is not int or told["chunk"] < 1:
            raise ValueError(f"chunk is {told['chunk']!r:.99}")
        return Run(**{**fields, "freeze": tuple(fields["freeze"])}), told["chunk"], about
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"not a {DESCRIPTION} ({type(error).__name__}: {error})") from error
