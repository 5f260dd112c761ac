"""Where a backbone's weights come from: the hub, a local folder, tiny files, or chance."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from vlm4vla.backbones import Backbone, backbone
from vlm4vla.families import family_of
from vlm4vla.run import Run
from vlm4vla.sources import remedy, source_of

logger = logging.getLogger(__name__)

PRETRAINED = Path(__file__).parent / "pretrained"
"""Tiny weights shipped with the package, one file per architecture."""
LM_HEAD = "lm_head.weight"
PREFIX = "vlm."
"""Of the backbone's keys among those of what is built on it."""


def tiny_file(row: Backbone) -> Path:
    """The file with the tiny row's pretrained weights, shared by its architecture."""
    return PRETRAINED / f"{row.architecture}.safetensors"


def from_scratch(row: Backbone, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model from torch's current generator (Table 8)."""
    with _default_dtype(dtype):
        vlm = family_of(row).build(row)
    if row.tiny:
        family_of(row).tiny_init(vlm)
    return vlm


def unfilled(row: Backbone, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model whose weights are still to be loaded: nothing is drawn, ties are in place."""
    with _default_dtype(dtype), no_init_weights():
        vlm = family_of(row).build(row)
    vlm.tie_weights()
    return vlm


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Build in `dtype`; casting later would also round the rotary frequencies."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def pretrained(
    row: Backbone, source: str | Path | None = None, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """The row's vision-language model with pretrained weights, as `dtype`.

    source: a local folder (or, for tiny rows, a file) instead of `source_of` (the package).
    FileNotFoundError names what is missing and the remedy.
    """
    if row.tiny:
        return _tiny_pretrained(row, Path(source) if source else tiny_file(row), dtype)
    source = str(source or source_of(row))
    try:
        return family_of(row).load(row, source, dtype)
    except OSError as error:
        raise FileNotFoundError(
            f"no weights for {row.name!r}: {source} cannot be read ({error}). {remedy(row)}, or "
            "train from random weights (--init scratch)."
        ) from error


def require_start(run: Run) -> None:
    """FileNotFoundError where a run on a tiny row has no weights to start from; loads nothing."""
    row = backbone(run.backbone)
    if row.tiny and run.init == "pretrained" and run.aux is None:
        _require(row, tiny_file(row))


def _require(row: Backbone, file: Path) -> None:
    if not file.exists():
        raise FileNotFoundError(
            f"no pretrained weights for {row.name!r}: {file} does not exist. Make it (ten to "
            f"twenty minutes) with `.venv/bin/python jobs/pretrain_tiny.py --backbone {row.name}`,"
            " or train from random weights (--init scratch)."
        )


def _tiny_pretrained(row: Backbone, file: Path, dtype: torch.dtype) -> PreTrainedModel:
    _require(row, file)
    vlm = unfilled(row, dtype)
    weights = load_file(file)
    if LM_HEAD in dict(vlm.named_parameters()) and LM_HEAD not in weights:
        # The file's row ties its head to its words; this one starts from the same values.
        weights[LM_HEAD] = weights[row.modules.embedding + ".weight"]
    load_weights(vlm, weights, str(file))
    return vlm


def staged(row: Backbone, file: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The row's model with the weights that an auxiliary stage left in `file`.

    Words that a stage added to a tiny vocabulary for its answers are left out, and so is what
    it trained beside the backbone.
    """
    vlm, weights = unfilled(row, dtype), load_file(file)
    own = (name for name in weights if name.startswith(PREFIX))
    weights = {name.removeprefix(PREFIX): weights[name] for name in own}
    state = vlm.state_dict(keep_vars=True)
    for words in (row.modules.embedding, row.modules.lm_head):
        name = f"{words}.weight"
        if name in weights:
            weights[name] = weights[name][: len(state[name])]
    load_weights(vlm, weights, str(file))
    return vlm


def save_tiny(vlm: nn.Module, file: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write a tiny model's weights, tied ones once; bf16 keeps the file under 1 MB."""
    file.parent.mkdir(parents=True, exist_ok=True)
    named = vlm.named_parameters()
    save_file({n: p.detach().to("cpu", dtype).contiguous() for n, p in named}, file)


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy `weights` into `module`; ValueError naming every missing, unknown or misfit key.

    A tensor that the module ties may come under any of its names, or all of them.
    """
    state = module.state_dict(keep_vars=True)
    check_keys(state, weights, source)
    with torch.no_grad():
        for name, tensor in state.items():
            if name in weights:
                tensor.copy_(weights[name])


def check_keys(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str) -> None:
    """ValueError unless `found` covers the tensors of a state dict (kept as variables)."""
    present = {id(tensor) for name, tensor in wanted.items() if name in found}
    shared = wanted.keys() & found.keys()
    problems = {
        "missing": [name for name, tensor in wanted.items() if id(tensor) not in present],
        "unknown": sorted(found.keys() - wanted.keys()),
        "of another shape": [
            f"{name} is {list(found[name].shape)}, should be {list(wanted[name].shape)}"
            for name in sorted(shared)
            if found[name].shape != wanted[name].shape
        ],
    }
    told = [
        f"{len(keys)} {what} ({', '.join(keys[:5])})" for what, keys in problems.items() if keys
    ]
    if told:
        raise ValueError(f"weights of {source} do not fit the model: {'; '.join(told)}")
