"""Freeze groups (Table 3) and which parameters an optimiser should see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from torch import nn

from envs.api import did_you_mean

if TYPE_CHECKING:
    from vlm4vla.backbones import Backbone, Modules

GROUPS: Mapping[str, tuple[str, ...]] = {
    "vision": ("vision",),
    "embed": ("embedding",),
    "llm": ("language", "lm_head"),
}
"""Freeze group -> the module paths of a row it covers. Qwen's merger lies inside its vision
tower and freezes with it; a projector outside the tower stays trainable. A tied `lm_head`
is the word embeddings and follows them."""


def group_modules(vlm: nn.Module, modules: Modules, group: str) -> Iterator[nn.Module]:
    """The modules of one freeze group; ValueError for an unknown group."""
    if group not in GROUPS:
        raise did_you_mean("freeze group", group, GROUPS)
    for field in GROUPS[group]:
        yield vlm.get_submodule(getattr(modules, field))


def freeze(vlm: nn.Module, row: Backbone, groups: Iterable[str]) -> None:
    """Make exactly `groups` of the backbone untrainable."""
    chosen = [m for group in groups for m in group_modules(vlm, row.modules, group)]
    vlm.requires_grad_(True)
    for module in chosen:
        module.requires_grad_(False)


def unused_by_policies(vlm: nn.Module, row: Backbone) -> frozenset[int]:
    """Ids of parameters that no action depends on: an `lm_head` with weights of its own."""
    words = vlm.get_submodule(row.modules.embedding).weight
    head = vlm.get_submodule(row.modules.lm_head).weight
    return frozenset() if head is words else frozenset({id(head)})
