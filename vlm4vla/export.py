"""A trained policy as two files, `policy.safetensors` and `policy.json`, and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from envs.api import ActionSpec, Benchmark
from envs.hashing import stable_hash
from vlm4vla.data.normalise import Normaliser
from vlm4vla.engine import DTYPES
from vlm4vla.policies import VlmPolicy, build_policy
from vlm4vla.run import Run

WEIGHTS = "policy.safetensors"
DESCRIPTION = "policy.json"
TOKENIZER = "tokenizer.json"
_ACTS = "acts"
"""Key in the weights' file: hash of what `policy.json` says beside them of how they act, so that
the file's digest is the policy's identity, and neither file goes with another's."""
_ACTING = ("backbone", "policy", "prompt", "image_px", "profile")
"""Fields of a run that `build_policy` reads when there are weights."""


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
    normaliser = policy.normaliser
    known = normaliser if isinstance(normaliser, Normaliser) else None
    save_weights(weights, run, benchmark, known, folder)


def save_weights(
    weights: Mapping[str, Tensor],
    run: Run,
    benchmark: Benchmark,
    normaliser: Normaliser | None,
    folder: Path,
) -> None:
    """Write tensors that share no memory, in host memory, and what is needed to use them."""
    description = {
        "run": dataclasses.asdict(run),
        "chunk": benchmark.chunk,
        "action_spec": dataclasses.asdict(benchmark.action_spec),
        "overrides": dict(benchmark.recipe.overrides),
        "normaliser": normaliser and normaliser.to_json(),
    }
    told = json.dumps(description, indent=1)
    save_file(dict(weights), folder / WEIGHTS, metadata={_ACTS: _acts(json.loads(told))})
    (folder / DESCRIPTION).write_text(told)


def _acts(told: Mapping[str, Any]) -> str:
    run = {name: told["run"].get(name) for name in _ACTING}
    rest = {name: told.get(name) for name in ("chunk", "action_spec", "overrides", "normaliser")}
    return stable_hash([run, rest])


def load_policy(
    folder: Path,
    description: str = DESCRIPTION,
    weights: str = WEIGHTS,
    *,
    precision: str = "fp32",
    device: str = "cpu",
) -> VlmPolicy:
    """The policy in a folder, ready to act; FileNotFoundError when a file is missing.

    ValueError when the two files are not of one policy. description, weights: their names. A
    tokenizer in the folder is used. precision: one of `vlm4vla.engine.DTYPES`, of everything as
    in training. device: torch's.
    """
    data = (folder / description).read_bytes()
    run, chunk, about = described(data)
    with safe_open(folder / weights, "pt") as file:
        acts = (file.metadata() or {}).get(_ACTS)  # none in what older versions wrote
    if acts is not None and acts != _acts(json.loads(data)):
        raise ValueError(
            f"{folder / description} is not what {weights} was saved with: take both files from "
            "one checkpoint, unchanged"
        )
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
