"""The training of an auxiliary stage: what the loop of `vlm4vla.train` is told about it."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from envs.api import TrainingRecipe
from vlm4vla.aux.order import Order
from vlm4vla.aux.questions import Questions
from vlm4vla.aux.sft import Answering, build
from vlm4vla.batches import Ahead, Batch
from vlm4vla.data.order import share
from vlm4vla.engine import DTYPES, Engine
from vlm4vla.export import DESCRIPTION, WEIGHTS
from vlm4vla.families import Inputs
from vlm4vla.stages import AuxStage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageJob:
    """A stage with its prepared questions on local disk; see `vlm4vla.train.Job`."""

    stage: AuxStage
    dataset: Path
    scratch: Path
    engine: Engine = field(default_factory=Engine)
    log_every: int = 50
    keep_untrained: bool = False

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def seed(self) -> int:
        return self.stage.seed

    @property
    def recipe(self) -> TrainingRecipe:
        stage = self.stage
        return TrainingRecipe(
            steps=stage.steps,
            batch=stage.batch,
            lr=stage.lr,
            checkpoints=(),
            warmup=stage.warmup,
            schedule=stage.schedule,
        )

    @cached_property
    def questions(self) -> Questions:
        return Questions(self.dataset)

    def model(self, weights: Path | None) -> Answering:
        dtype = DTYPES[self.engine.precision]
        return build(self.stage, self.questions.words(), weights, dtype)

    def feed(self, model: Answering, rank: int, workers: int, parts: int) -> Asked:
        return Asked(self.stage, self.questions, model, rank, workers, parts)

    def save(self, model: Answering, folder: Path, weights: Mapping[str, Tensor]) -> None:
        save_file(dict(weights), folder / WEIGHTS)
        told = {"stage": dataclasses.asdict(self.stage), "words": self.questions.words()}
        (folder / DESCRIPTION).write_text(json.dumps(told, indent=1))

    def share_of_peak(self, workers: int) -> None:
        return None


class Asked(Ahead):
    """What worker `rank` of `workers` computes at each step; parts: micro-batches per step."""

    def __init__(
        self,
        stage: AuxStage,
        questions: Questions,
        model: Answering,
        rank: int,
        workers: int,
        parts: int,
    ) -> None:
        self.questions, self.model, self.workers, self.parts = questions, model, workers, parts
        long = too_long(questions, model)
        for why in long.values():
            log.warning("left out of %s: %s", stage.name, why)
        usable = {name: _usable(name, n, long) for name, n in questions.trained.items()}
        shares = dict(stage.mixture)
        self.seed = stage.seed
        self.order = Order(usable, shares, questions.size, stage.batch, stage.seed)
        self.pictures = questions.pictures(model.input_px(stage.image_px), model.resize)
        mine = range(stage.batch)[share(stage.batch, rank, workers)]
        self.slots = [mine[share(len(mine), part, parts)] for part in range(parts)]

    def samples(self, step: int) -> list[int]:
        """Numbers of the questions of the global batch of a step."""
        return self.order.at(step).tolist()

    def _prepare(self, step: int) -> list[Batch]:
        numbers = self.order.at(step)
        tails = [len(self.model.questioner.tail(self.questions.answers[n])) for n in numbers]
        weigh = self.workers * self.parts / sum(tails)
        parts = (numbers[slots.start : slots.stop] for slots in self.slots)
        return [self._part(step, part, weigh) for part in parts]

    def _part(self, step: int, numbers: np.ndarray, weigh: float) -> Batch:
        inputs = self.model.prepare_text(
            self.pictures(numbers),
            [self.questions.questions[number] for number in numbers],
            [self.questions.answers[number] for number in numbers],
        )
        return weighted(inputs, (), weigh)


def weighted(inputs: Inputs, targets: tuple[Tensor, ...], weigh: float) -> Batch:
    """A micro-batch of questions that counts as much as it has answer tokens."""
    answered = int((inputs["labels"] >= 0).sum())
    tokens = int(inputs["attention_mask"].sum())
    return Batch(inputs, targets, weight=answered * weigh, tokens=tokens)


def too_long(questions: Questions, model: Answering) -> dict[int, str]:
    """Numbers of the questions that do not fit the model's context, and why each does not."""
    prompter = model.questioner
    room = prompter.context - len(prompter.tokens("")) - len(prompter.tail(""))
    found = {}
    pairs = zip(questions.questions, questions.answers, strict=True)
    for number, (text, answer) in enumerate(pairs):
        # No tokenizer makes more tokens than there are bytes, so few have to be counted.
        spelled = answer.encode() if isinstance(answer, str) else answer
        if len(text.encode()) + len(spelled) <= room:
            continue
        needed = len(prompter.tokens(text)) + len(prompter.tail(answer))
        if needed > prompter.context:
            where = questions.where[number]
            found[number] = f"{where}: needs {needed} tokens of {prompter.context}"
    return found


def without(numbers: np.ndarray, left_out: Mapping[int, str]) -> np.ndarray:
    return numbers[~np.isin(numbers, list(left_out))]


def _usable(name: str, numbers: np.ndarray, long: Mapping[int, str]) -> np.ndarray:
    usable = without(numbers, long)
    if not len(usable):
        why = next(iter(long.values()))
        raise ValueError(f"no question of {name} fits the backbone's context: {why}, …")
    return usable
