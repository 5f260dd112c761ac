"""One row per vision-language model of the paper, and a tiny variant of each.

`python -m vlm4vla.backbones [--json]` prints sizes computed from the rows (Tables 3 and 9).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from envs.api import did_you_mean
from vlm4vla import configs, tiny


@dataclass(frozen=True)
class ImageSpec:
    """How an RGB image becomes a model's pixels.

    mean, std: per channel on the 0..1 scale. resample: "bicubic" (with antialias) or "area".
    fixed_px: the only side the tower takes (pixels), None if any multiple of its patches.
    scale: side of the model's image over the side asked for; below 1 for tiny rows.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    fixed_px: int | None = None
    resample: str = "bicubic"
    scale: float = 1.0


@dataclass(frozen=True)
class Modules:
    """Paths of a model's parts inside the transformers model.

    A projector inside the vision tower freezes with it: Qwen's merger, as the authors count it,
    but not PaliGemma's projector.
    """

    vision: str
    projector: str
    language: str
    embedding: str
    lm_head: str


@dataclass(frozen=True)
class Backbone:
    """A vision-language model that can become a policy.

    name: as in the paper's tables (`paper.json`). family: key of `families.FAMILIES`.
    architecture: rows of one architecture differ in sizes alone and share tiny weights.
    revision: None where no source names one. config: arguments of the transformers config.
    head_width: the policy head's 1024 of Table 9; all of the head's widths scale with it.
    """

    name: str
    family: str
    architecture: str
    hub_id: str
    config: Mapping[str, Any]
    image: ImageSpec
    modules: Modules
    revision: str | None = None
    head_width: int = 1024
    tiny: bool = False


_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_QWEN_MODULES = Modules(
    "model.visual",
    "model.visual.merger",
    "model.language_model",
    "model.language_model.embed_tokens",
    "lm_head",
)
_PALIGEMMA_MODULES = dataclasses.replace(
    _QWEN_MODULES, vision="model.vision_tower", projector="model.multi_modal_projector"
)
_KOSMOS_MODULES = Modules(
    "vision_model",
    "image_to_text_projection",
    "text_model.model",
    "text_model.model.embed_tokens",
    "text_model.lm_head",
)

_PRISMATIC_MODULES = Modules(
    "vision_backbone",
    "projector",
    "language_model.model",
    "language_model.model.embed_tokens",
    "language_model.lm_head",
)


def _qwen(name: str, architecture: str, hub_id: str, config: Mapping[str, Any]) -> Backbone:
    image = ImageSpec(*(_CLIP if architecture == "qwen2.5-vl" else _HALF))
    return Backbone(name, "qwen_vl", architecture, hub_id, config, image, _QWEN_MODULES)


def _paligemma(name: str, architecture: str, hub_id: str, config: Mapping[str, Any]) -> Backbone:
    image = ImageSpec(*_HALF, fixed_px=224)
    return Backbone(name, "paligemma", architecture, hub_id, config, image, _PALIGEMMA_MODULES)


def _kosmos(name: str, architecture: str, hub_id: str, config: Mapping[str, Any]) -> Backbone:
    image = ImageSpec(*_CLIP, fixed_px=224)
    return Backbone(name, "kosmos2", architecture, hub_id, config, image, _KOSMOS_MODULES)


_ROWS = (
    _qwen("qwen2.5vl-3b", "qwen2.5-vl", "Qwen/Qwen2.5-VL-3B-Instruct", configs.QWEN25_3B),
    _qwen("qwen2.5vl-7b", "qwen2.5-vl", "Qwen/Qwen2.5-VL-7B-Instruct", configs.QWEN25_7B),
    _qwen("qwen3vl-2b", "qwen3-vl", "Qwen/Qwen3-VL-2B-Instruct", configs.QWEN3_2B),
    _qwen("qwen3vl-4b", "qwen3-vl", "Qwen/Qwen3-VL-4B-Instruct", configs.QWEN3_4B),
    _qwen("qwen3vl-8b", "qwen3-vl", "Qwen/Qwen3-VL-8B-Instruct", configs.QWEN3_8B),
    _qwen(
        "qwen3vl-30b-a3b", "qwen3-vl-moe", "Qwen/Qwen3-VL-30B-A3B-Instruct", configs.QWEN3_30B_A3B
    ),
    _paligemma("paligemma-1", "paligemma-1", "google/paligemma-3b-pt-224", configs.PALIGEMMA_1),
    _paligemma("paligemma-2", "paligemma-2", "google/paligemma2-3b-pt-224", configs.PALIGEMMA_2),
    _kosmos("kosmos-2", "kosmos-2", "microsoft/kosmos-2-patch14-224", configs.KOSMOS_2),
)
_EXPERT_ROWS = (
    Backbone(
        "prism-dinosiglip-224px-7b",
        "prismatic",
        "prismatic",
        "openvla/openvla-7b",
        configs.PRISMATIC_7B,
        ImageSpec(*_HALF, fixed_px=224),
        _PRISMATIC_MODULES,
    ),
)
"""Backbones of expert policies that the paper compares with (4.1.1)."""
_FULL: Mapping[str, Backbone] = {row.name: row for row in _ROWS}
_ALL_FULL = (*_ROWS, *_EXPERT_ROWS)
_TINY = [tiny.derive(row) for row in _ALL_FULL if row.architecture in tiny.SIZES]
BACKBONES: Mapping[str, Backbone] = {row.name: row for row in (*_ALL_FULL, *_TINY)}
"""Every row by name: the paper's nine, OpenVLA's, and `tiny-` + each name with tiny sizes."""


def backbone(name: str) -> Backbone:
    """The row called `name`; ValueError with the closest name otherwise."""
    if name in BACKBONES:
        return BACKBONES[name]
    full = BACKBONES.get(name.removeprefix("tiny-"))
    if full is None:
        raise did_you_mean("backbone", name, BACKBONES)
    raise ValueError(
        f"{full.name} has no tiny variant: give its architecture {full.architecture!r} sizes in "
        "SIZES of vlm4vla/tiny.py"
    )


def full_rows() -> tuple[Backbone, ...]:
    """The paper's nine, in its order."""
    return tuple(_FULL.values())


if __name__ == "__main__":
    from vlm4vla.sizes import main

    print(main())
