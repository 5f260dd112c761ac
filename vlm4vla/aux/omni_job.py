"""The training of an omni-generation stage: every question comes with one scene to draw."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlm4vla.aux.omni import Omni
from vlm4vla.aux.omni_data import Maps, Scenes
from vlm4vla.aux.sft import Answering, build
from vlm4vla.aux.stage_job import Asked, StageJob, weighted
from vlm4vla.batches import Batch
from vlm4vla.engine import DTYPES, Engine
from vlm4vla.prompts import IGNORED
from vlm4vla.stages import AuxStage

REQUEST = "Draw this picture's depth, things and colours."


@dataclass(frozen=True)
class OmniJob(StageJob):
    """A stage that also learns to draw the scenes beside its questions.

    The decoder is in checkpoints, and left out by whoever starts a policy from them.
    """

    @cached_property
    def scenes(self) -> Scenes:
        return Scenes(self.dataset)

    def model(self, weights: Path | None) -> Omni:
        stage, classes = self.stage, len(self.scenes.classes)
        kind = partial(Omni, classes=classes, decoder=stage.decoder, size=stage.map_px)
        dtype = DTYPES[self.engine.precision]
        model = build(stage, self.questions.words(), weights, dtype, kind)
        assert isinstance(model, Omni)
        return model

    def feed(self, model: Answering, rank: int, workers: int, parts: int) -> Drawn:
        asked = self.stage, self.questions, model, rank, workers, parts
        return Drawn(self.scenes, self.stage.map_px, *asked)


def make_stage_job(stage: AuxStage, engine: Engine, dataset: Path, scratch: Path) -> StageJob:
    """A job from what is known when it is planned and what a worker adds: its folders."""
    kind = StageJob if stage.draws is None else OmniJob
    return kind(stage, dataset, scratch, engine)


@torch.no_grad()
def drawn(model: Omni, scenes: Scenes, numbers: np.ndarray, size: int) -> Maps:
    """The maps that a model draws of scenes."""
    inputs = model.prepare_text(scenes.images(numbers, model.resize), [REQUEST] * len(numbers))
    return model.predict(inputs, torch.from_numpy(numbers))


class Drawn(Asked):
    """Questions, and behind them as many scenes, which depend on (seed, step, question)."""

    def __init__(self, scenes: Scenes, size: int, *asked: Any) -> None:
        super().__init__(*asked)
        self.scenes, self.size = scenes, size

    def _part(self, step: int, numbers: np.ndarray, weigh: float) -> Batch:
        keys = [self._key(step, int(number)) for number in numbers]
        usable = self.scenes.trained
        chosen = [usable[key % len(usable)] for key in keys]
        pictures = self.scenes.images(chosen, self.model.resize)
        inputs = self.model.prepare_text(
            np.concatenate([self.pictures(numbers), pictures]),
            [*(self.questions.questions[n] for n in numbers), *[REQUEST] * len(chosen)],
            [*(self.questions.answers[n] for n in numbers), *[""] * len(chosen)],
        )
        inputs["labels"][len(numbers) :] = IGNORED
        maps = self.scenes.maps(chosen, self.size)
        targets = (maps.depth, maps.classes, maps.colours, torch.tensor(keys))
        return weighted(inputs, targets, weigh)

    def _key(self, step: int, number: int) -> int:
        seed = np.random.SeedSequence([self.seed, step, number])
        return int(seed.generate_state(1)[0])
