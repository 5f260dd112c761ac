"""Where a backbone's weights come from: the hub, a local folder, tiny files, or chance."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vlm4vla.backbones import Backbone
from vlm4vla.families import family_of

logger = logging.getLogger(__name__)

PRETRAINED = Path(__file__).parent / "pretrained"
"""Tiny weights shipped with the package, one file per architecture."""
LM_HEAD = "lm_head.weight"


def tiny_file(row: Backbone) -> Path:
    """The file with the tiny row's pretrained weights, shared by its architecture."""
    return PRETRAINED / f"{row.architecture}.safetensors"


def from_scratch(row: Backbone) -> nn.Module:
    """A random model from torch's current generator (Table 8); fp32."""
    vlm = family_of(row).build(row)
    if row.tiny and next(vlm.parameters()).device.type != "meta":
        family_of(row).tiny_init(vlm)
    return vlm


def pretrained(
    row: Backbone, source: str | Path | None = None, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """The row's vision-language model with pretrained weights, as `dtype`.

    source: a local folder (or, for tiny rows, a file) instead of the hub (the package).
    FileNotFoundError names what is missing and the remedy.
    """
    if row.tiny:
        return _tiny_pretrained(row, Path(source) if source else tiny_file(row)).to(dtype)
    try:
        return (
            family_of(row)
            .model_class(row)
            .from_pretrained(str(source or row.hub_id), revision=row.revision, dtype=dtype)
        )
    except OSError as error:
        raise FileNotFoundError(
            f"no weights for {row.name!r}: {source or row.hub_id} cannot be read ({error}). "
            f"Download {row.hub_id} and pass its folder, or train with init='scratch'."
        ) from error


def _tiny_pretrained(row: Backbone, file: Path) -> nn.Module:
    if not file.exists():
        raise FileNotFoundError(
            f"no pretrained weights for {row.name!r}: {file} does not exist. Make it with "
            f"`python jobs/pretrain_tiny.py`, or train with init='scratch'."
        )
    vlm = family_of(row).build(row)
    load_weights(vlm, load_file(file), str(file))
    return vlm


def save_tiny(vlm: nn.Module, file: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write a tiny model's weights, tied ones once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(unique_weights(vlm, dtype), file)


def unique_weights(module: nn.Module, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """The module's parameters by name, each tied one under its first name alone."""
    named = module.named_parameters()
    return {n: p.detach().to(dtype or p.dtype).contiguous() for n, p in named}


def load_weights(module: nn.Module, weights: dict[str, torch.Tensor], source: str) -> None:
    """Copy `weights` into `module`; ValueError naming every missing, unknown or misfit key."""
    wanted = dict(module.named_parameters())
    check_keys({n: tuple(p.shape) for n, p in wanted.items()}, weights, source)
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(weights[name])


def check_keys(
    wanted: dict[str, tuple[int, ...]], found: dict[str, torch.Tensor], source: str
) -> None:
    """ValueError unless `found` has exactly the wanted names and shapes."""
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    misfit = [
        f"{n} is {list(found[n].shape)}, should be {list(shape)}"
        for n, shape in wanted.items()
        if n in found and tuple(found[n].shape) != shape
    ]
    problems = (("missing", missing), ("unknown", unknown), ("of another shape", misfit))
    told = [f"{len(keys)} {what} ({', '.join(keys[:5])})" for what, keys in problems if keys]
    if told:
        raise ValueError(f"weights of {source} do not fit the model: {'; '.join(told)}")
