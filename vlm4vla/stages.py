"""Auxiliary stages: what a backbone is fine-tuned on before it becomes a policy (4.2, 4.4).

The paper gives each stage's data, not its optimiser: steps are one pass over the published
samples, and rates are those at which these backbones are usually fine-tuned.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from envs.api import did_you_mean
from envs.hashing import stable_hash
from vlm4vla.aux.datasets import DATASETS, VqaDataset, dataset

SCHEMA = 5
"""Version of the stage's fields and of the data made here; part of every id."""
GENERAL = {False: "general", True: "tabletop-general"}
"""General questions, which may be mixed into any stage, for full-size and for tiny models."""


@dataclass(frozen=True)
class AuxStage:
    """One fine-tuned backbone. `id` is what `Run.aux` holds.

    mixture: rows of `vlm4vla.aux.datasets` with their shares, in any unit. freeze: groups that
    the stage keeps fixed. init: as a run's. weights: hub id of published weights, which the
    paper uses as they are, instead of a mixture. draws: a row of the mixture whose scenes are
    drawn as well, as maps of `map_px` pixels a side by a `vlm4vla.aux.omni.DECODERS`.
    """

    name: str
    backbone: str
    mixture: tuple[tuple[str, float], ...] = ()
    freeze: tuple[str, ...] = ()
    weights: str | None = None
    draws: str | None = None
    decoder: str = "regression"
    map_px: int = 56
    init: str = "pretrained"
    steps: int = 0
    batch: int = 128
    lr: float = 1e-5
    warmup: int = 100
    schedule: str = "cosine"
    clip_norm: float = 1.0
    image_px: int = 224
    seed: int = 0

    @property
    def id(self) -> str:
        """The name and 8 hex digits of everything else, the data's rows included."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        fields = {**dataclasses.asdict(self), "rows": rows}
        return f"{self.name}-{stable_hash({'schema': SCHEMA, **fields})[:8]}"

    @property
    def rows(self) -> tuple[VqaDataset, ...]:
        return tuple(dataset(name) for name, _ in self.mixture)

    @property
    def data(self) -> str:
        """Id of the stage's prepared questions; stages that differ otherwise share them."""
        rows = [dataclasses.asdict(row) for row in sorted(self.rows, key=lambda row: row.name)]
        # Actions are spelled in the words of one backbone.
        spelled = self.backbone if any(row.kind == "action" for row in self.rows) else None
        drawn = [self.draws] if self.draws else []
        return f"questions-{stable_hash([SCHEMA, rows, spelled, *drawn])[:12]}"

    def with_general(self, share: float) -> AuxStage:
        """The same stage with so large a share (0 to 1) of general questions mixed in."""
        if not 0 <= share < 1:
            raise ValueError(f"the share of general questions is {share}, not in 0 .. 1")
        if not share:
            return self
        name = GENERAL[self.backbone.startswith("tiny-")]
        total = sum(weight for _, weight in self.mixture)
        mixture = (*self.mixture, (name, total * share / (1 - share)))
        return replace(self, name=f"{self.name}-general{round(100 * share)}", mixture=mixture)


def _on(name: str, backbone: str, *data: str, weights: tuple[float, ...] = ()) -> AuxStage:
    """One pass over the data; their shares are their published sizes unless given."""
    sizes = weights or tuple(float(DATASETS[each].samples) for each in data)
    stage = AuxStage(name, backbone, tuple(zip(data, sizes, strict=True)))
    return replace(stage, steps=math.ceil(sum(sizes) / stage.batch))


_Q3, _Q7 = "qwen2.5vl-3b", "qwen2.5vl-7b"
_MIX = ("vica332k", "spacer", "embspatial", "refspatial", "general")
_INJECTED = _on("fast-vision-unfrozen", "qwen3vl-4b", "bridge-actions")
_ROWS = (
    *(_on(name, _Q3, name) for name in ("robopoint", "vica332k", "bridgevqa", "robo2vlm")),
    AuxStage("robobrain2", _Q7, weights="BAAI/RoboBrain2.0-7B"),
    # The paper's diffusion model and images are unpublished: ours draws BridgeVQA's scenes.
    replace(
        _on("omni-generation", _Q7, "bridgevqa", "general"), draws="bridgevqa", decoder="diffusion"
    ),
    # About 620k embodied pairs and 360k general ones (A.6).
    _on("vqa-mix", _Q7, *_MIX),
    replace(_INJECTED, name="fast-vision-frozen", freeze=("vision",)),
    _INJECTED,
)
STAGES: Mapping[str, AuxStage] = {stage.name: stage for stage in _ROWS}
"""The stages of Table 10, and the two of Table 4: BridgeV2 actions as FAST tokens."""

_POINT, _NUMBER, _CHOICE = (f"tabletop-{kind}" for kind in ("point", "number", "choice"))
_TINY_DATA: Mapping[str, tuple[str, ...]] = {
    "robopoint": (_POINT,),
    "vica332k": (_NUMBER,),
    "bridgevqa": (_NUMBER, _CHOICE),
    "robo2vlm": (_CHOICE,),
    "robobrain2": (_POINT, _CHOICE),
    "omni-generation": (_CHOICE, "tabletop-general"),
    "vqa-mix": (_POINT, _NUMBER, _CHOICE, "tabletop-general"),
    "fast-vision-frozen": ("tabletop-actions",),
    "fast-vision-unfrozen": ("tabletop-actions",),
}


def _tiny(stage: AuxStage) -> AuxStage:
    """What stands for a stage on a laptop: the tabletop's questions of the same kinds."""
    # Actions take longer: with vision trained, 81 % of held-out demonstrations' tokens after these.
    steps, lr = (1600, 2e-3) if stage.name.startswith("fast-") else (600, 1e-3)
    return replace(
        stage,
        name=f"tiny-{stage.name}",
        backbone=f"tiny-{stage.backbone}",
        mixture=tuple((name, 1.0) for name in _TINY_DATA[stage.name]),
        weights=None,
        draws=_CHOICE if stage.draws else None,
        decoder="regression",
        # At 56 most of a step would be the decoder's convolutions.
        map_px=28 if stage.draws else stage.map_px,
        steps=steps,
        batch=64,
        lr=lr,
        warmup=50,
    )


TINY_STAGES: Mapping[str, AuxStage] = {name: _tiny(STAGES[name]) for name in _TINY_DATA}
"""By the name of the stage that each stands for."""


def tiny_stage(name: str) -> AuxStage:
    """What stands for a stage on a laptop; ValueError for one that has no tiny data."""
    if name not in TINY_STAGES:
        raise ValueError(
            f"the stage {name} has no tiny counterpart for laptops: name its data in _TINY_DATA of "
            "vlm4vla/stages.py"
        )
    return TINY_STAGES[name]


def stage_of(aux: str) -> AuxStage:
    """The stage with this id; ValueError when no row has it."""
    known = {stage.id: stage for stage in (*STAGES.values(), *TINY_STAGES.values())}
    if aux not in known:
        raise did_you_mean("auxiliary stage", aux, known)
    return known[aux]


def variants(
    stages: Iterable[AuxStage], shares: Sequence[float] = (0.0,), steps: int | None = None
) -> list[AuxStage]:
    """Each stage with each share of general questions, so many steps long.

    Published weights are what they are, and have one variant.
    """
    found = []
    for stage in stages:
        if stage.weights is not None:
            found.append(stage)
        else:
            longer = replace(stage, steps=steps or stage.steps)
            found += [longer.with_general(share) for share in shares]
    return found
