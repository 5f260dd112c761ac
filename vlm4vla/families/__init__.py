"""Families of vision-language models, one file each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from envs.api import did_you_mean
from vlm4vla.families.base import Family, Inputs, Template
from vlm4vla.families.kosmos2 import Kosmos2
from vlm4vla.families.paligemma import PaliGemma
from vlm4vla.families.prismatic import PrismaticFamily
from vlm4vla.families.qwen_vl import QwenVL

if TYPE_CHECKING:
    from vlm4vla.backbones import Backbone

FAMILIES: Mapping[str, Family] = {
    "kosmos2": Kosmos2(),
    "paligemma": PaliGemma(),
    "prismatic": PrismaticFamily(),
    "qwen_vl": QwenVL(),
}


def family_of(row: Backbone) -> Family:
    """How the row's model is built and asked; ValueError for a family that is not listed here."""
    if row.family not in FAMILIES:
        raise did_you_mean(f"family of {row.name}", row.family, FAMILIES)
    return FAMILIES[row.family]


__all__ = ["FAMILIES", "Family", "Inputs", "Template", "family_of"]
