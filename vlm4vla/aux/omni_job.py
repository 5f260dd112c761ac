"""The training of an omni-generation stage: every question comes with one scene to draw."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlm4vla.aux.omni import Omni
from vlm4vla.aux.omni_data import Scenes
from vlm4vla.aux.sft import Answering, build
from vlm4vla.aux.stage_job import Asked, StageJob, weighted
from vlm4vla.batches import Batch
from vlm4vla.engine import DTYPES
from vlm4vla.prompts import IGNORED

REQUEST = "Draw this picture's depth, things and colours."


@dataclass(frozen=True)
class OmniJob(StageJob):
    """A stage that also learns to draw. drawings: a folder of `vlm4vla.aux.bridge_vqa.write`.

    decoder: key of `vlm4vla.aux.omni.DECODERS`. size: side of the maps, pixels. weight: of
    their loss beside the answers'. The decoder is in checkpoints, and left out by whoever
    starts a policy from them.
    """

    drawings: Path = Path()
    decoder: str = "regression"
    size: int = 56
    weight: float = 1.0

    @cached_property
    def scenes(self) -> Scenes:
        return Scenes(self.drawings)

    def model(self, weights: Path | None) -> Omni:
        kind = partial(
            Omni,
            classes=len(self.scenes.classes),
            decoder=self.decoder,
            size=self.size,
            weight=self.weight,
        )
        dtype = DTYPES[self.engine.precision]
        model = build(self.stage, self.questions.words(), weights, dtype, kind)
        assert isinstance(model, Omni)
        return model

    def feed(self, model: Answering, rank: int, workers: int, parts: int) -> Drawn:
        asked = self.stage, self.questions, model, rank, workers, parts
        return Drawn(self.scenes, self.size, *asked)


class Drawn(Asked):
    """Questions, and behind them as many scenes, which depend on (seed, step, question)."""

    def __init__(self, scenes: Scenes, size: int, *asked: Any) -> None:
        super().__init__(*asked)
        self.scenes, self.size = scenes, size

    def _part(self, step: int, numbers: np.ndarray, weigh: float) -> Batch:
        keys = [self._key(step, int(number)) for number in numbers]
        drawn = [key % len(self.scenes) for key in keys]
        pictures = self.model.resize(self.scenes.images(drawn))
        inputs = self.model.prepare_text(
            np.concatenate([self.pictures(numbers), pictures]),
            [*(self.questions.questions[n] for n in numbers), *[REQUEST] * len(drawn)],
            [*(self.questions.answers[n] for n in numbers), *[""] * len(drawn)],
        )
        inputs["labels"][len(numbers) :] = IGNORED
        maps = self.scenes.maps(drawn, self.size)
        targets = (maps.depth, maps.classes, maps.colours, torch.tensor(keys))
        return weighted(inputs, targets, weigh)

    def _key(self, step: int, number: int) -> int:
        seed = np.random.SeedSequence([self.seed, step, number])
        return int(seed.generate_state(1)[0])
