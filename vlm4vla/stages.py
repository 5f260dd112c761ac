"""Auxiliary stages: what a backbone is fine-tuned on before it becomes a policy (4.2, 4.4).

A stage is named here so that the runs which start from it have an identity; its data and its
training are not described yet, and describing them will change its id.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from envs.hashing import stable_hash

SCHEMA = 1
"""Version of the stage's fields; part of every id."""


@dataclass(frozen=True)
class AuxStage:
    """One fine-tuned backbone. `id` is what `Run.aux` holds.

    freeze: groups that the stage keeps fixed. weights: hub id of published weights, which the
    paper uses as they are; None where the stage has to be trained.
    """

    name: str
    backbone: str
    freeze: tuple[str, ...] = ()
    weights: str | None = None

    @property
    def id(self) -> str:
        """The name and 8 hex digits of everything else."""
        fields = dataclasses.asdict(self)
        return f"{self.name}-{stable_hash({'schema': SCHEMA, **fields})[:8]}"


_ROWS = (
    *(
        AuxStage(name, "qwen2.5vl-3b")
        for name in ("robopoint", "vica332k", "bridgevqa", "robo2vlm")
    ),
    AuxStage("robobrain2", "qwen2.5vl-7b", weights="BAAI/RoboBrain2.0-7B"),
    AuxStage("omni-generation", "qwen2.5vl-7b"),
    AuxStage("vqa-mix", "qwen2.5vl-7b"),
    AuxStage("fast-vision-frozen", "qwen3vl-4b", freeze=("vision",)),
    AuxStage("fast-vision-unfrozen", "qwen3vl-4b"),
)
STAGES: Mapping[str, AuxStage] = {stage.name: stage for stage in _ROWS}
"""The stages of Table 10, and the two of Table 4: BridgeV2 actions as FAST tokens."""


def stage_of(aux: str) -> AuxStage:
    """The stage with this id; KeyError when no row has it."""
    return {stage.id: stage for stage in STAGES.values()}[aux]
