"""Sizes of the rows, counted on the meta device: Tables 3, 7 and 9 of the paper."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from vlm4vla import freeze
from vlm4vla.backbones import Backbone, full_rows
from vlm4vla.families import family_of
from vlm4vla.policies.head import ActionHead
from vlm4vla.recipe import RECIPES

CALVIN_CHUNK = 10
"""Table 9 does not name its chunk; it changes a head by 0.2%."""
RESOLUTIONS = (224, 512, 768)
"""Table 7's, in pixels."""


def meta_model(row: Backbone) -> nn.Module:
    """The row's model without storage: shapes, names and ties alone."""
    with torch.device("meta"):
        return family_of(row).build(row)


def meta_head(vlm: nn.Module, row: Backbone, chunk: int = CALVIN_CHUNK) -> ActionHead:
    with torch.device("meta"):
        return ActionHead(words(vlm, row).shape[1], chunk, row.head_width)


def words(vlm: nn.Module, row: Backbone) -> nn.Parameter:
    """The word embeddings [V, D]."""
    return vlm.get_parameter(f"{row.modules.embedding}.weight")


def count(parameters: Iterable[nn.Parameter]) -> int:
    """Numbers in `parameters`, each of which should come once."""
    return sum(parameter.numel() for parameter in parameters)


def trainable(vlm: nn.Module, row: Backbone, groups: tuple[str, ...]) -> int:
    """Table 3's size: what is not frozen, `lm_head` included; a tied head counts once."""
    freeze.freeze(vlm, row, groups)
    return count(p for p in vlm.parameters() if p.requires_grad)


def optimised(vlm: nn.Module, head: nn.Module, row: Backbone, groups: tuple[str, ...]) -> int:
    """What gets a gradient in a policy: backbone without an unused `lm_head`, query, head."""
    freeze.freeze(vlm, row, groups)
    unused = freeze.unused_by_policies(vlm, row)
    backbone = count(p for p in vlm.parameters() if p.requires_grad and id(p) not in unused)
    return backbone + words(vlm, row).shape[1] + count(head.parameters())


def image_tokens(row: Backbone, image_px: int, profile: str = "paper") -> int:
    family = family_of(row)
    return family.image_tokens(row, family.input_px(row, image_px, RECIPES[profile]))


def describe(row: Backbone) -> dict[str, Any]:
    """One row's sizes as plain JSON types; M is a million parameters."""
    vlm = meta_model(row)
    head = meta_head(vlm, row)
    groups = {"none": (), "vision": ("vision",), "embed": ("embed",)}
    return {
        "name": row.name,
        "family": row.family,
        "parameters_M": _millions(count(vlm.parameters())),
        "head_M": _millions(count(head.parameters())),
        "llm_hidden": words(vlm, row).shape[1],
        "trainable_M": {n: _millions(trainable(vlm, row, g)) for n, g in groups.items()},
        "optimised_M": _millions(optimised(vlm, head, row, ())),
        "image_tokens": {str(px): image_tokens(row, px) for px in RESOLUTIONS},
    }


def _millions(parameters: int) -> float:
    return round(parameters / 1e6, 3)


def table(rows: list[dict[str, Any]]) -> str:
    """The sizes for people: millions of parameters, tokens of one image."""
    head = "backbone          params    head  hidden  -vision   -embed  tokens 224/512/768"
    return "\n".join([head, *map(_line, rows)])


def _line(row: dict[str, Any]) -> str:
    frozen = row["trainable_M"]
    tokens = "/".join(str(n) for n in row["image_tokens"].values())
    return (
        f"{row['name']:<16}{row['parameters_M']:8.0f}{row['head_M']:8.2f}{row['llm_hidden']:8d}"
        f"{frozen['vision']:9.0f}{frozen['embed']:9.0f}  {tokens}"
    )


def main(arguments: list[str] | None = None) -> str:
    """What `python -m vlm4vla.backbones` prints."""
    parser = argparse.ArgumentParser(prog="python -m vlm4vla.backbones", description=__doc__)
    parser.add_argument("--json", action="store_true", help="a list of objects instead of a table")
    options = parser.parse_args(arguments)
    rows = [describe(row) for row in full_rows()]
    return json.dumps(rows, indent=1) if options.json else table(rows)
