"""How well a stage's backbone answers held-out questions, before and after the stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlm4vla.aux.metrics import METRICS
from vlm4vla.aux.omni_data import joined, scores
from vlm4vla.aux.omni_job import OmniJob, drawn, make_stage_job
from vlm4vla.aux.questions import Questions
from vlm4vla.aux.sft import Answering
from vlm4vla.aux.stage_job import too_long, without
from vlm4vla.engine import Engine
from vlm4vla.stages import AuxStage

Pictures = Callable[[np.ndarray], np.ndarray]
ASKED = 256
"""Held-out questions of each row that are asked, at most."""
TOGETHER = 32
LONGEST = 128
"""Ids after which an answer is cut off."""


def score_stage(
    stage: AuxStage, dataset: Path, weights: Path | None, precision: str = "fp32"
) -> dict[str, Any]:
    """Mean score by "row of the table/kind", with how many were asked, and what was left out.

    dataset: the stage's prepared questions. weights: the trained stage's file; None scores the
    backbone as the stage found it.
    """
    job = make_stage_job(stage, Engine(precision=precision), dataset, dataset)
    questions, model = job.questions, job.model(weights).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    long = too_long(questions, model)
    answered = {
        name: _scores(model, stage, questions, _some(without(numbers, long)))
        for name, numbers in questions.held_out.items()
    }
    means = {
        f"{name}/{kind}": {"score": float(np.mean(found)), "asked": len(found)}
        for name, by_kind in answered.items()
        for kind, found in by_kind.items()
    }
    if isinstance(job, OmniJob):
        means |= _drawn_scores(job, model)
    bad = [*questions.manifest.bad, *long.values()]
    return {"scores": means, "left_out": bad, "counts": dict(questions.manifest.counts)}


def _some(numbers: np.ndarray) -> np.ndarray:
    return numbers[:: max(1, len(numbers) // ASKED)][:ASKED]


def _drawn_scores(job: OmniJob, model: Any) -> dict[str, Any]:
    """Scores of held-out scenes, by "row of the table/kind of map"."""
    scenes, size = job.scenes, job.stage.map_px
    numbers = _some(scenes.held_out)
    parts = [
        drawn(model, scenes, numbers[first : first + TOGETHER], size)
        for first in range(0, len(numbers), TOGETHER)
    ]
    found = joined(parts)
    return {
        f"{job.stage.draws}/{kind}": {"score": score, "asked": len(numbers)}
        for kind, score in scores(found, scenes.maps(numbers, size)).items()
    }


def _scores(
    model: Answering, stage: AuxStage, questions: Questions, numbers: np.ndarray
) -> Mapping[str, list[float]]:
    """Scores of the questions by kind of answer; of those in ids also their "tokens"."""
    pictures = questions.pictures(model.input_px(stage.image_px), model.resize)
    found: dict[str, list[float]] = {}
    for first in range(0, len(numbers), TOGETHER):
        some = numbers[first : first + TOGETHER]
        asked = [questions.questions[number] for number in some]
        longest = max(len(model.questioner.tail(questions.answers[n])) for n in some)
        said = model.answers(pictures(some), asked, min(longest, LONGEST))
        for number, ids in zip(some, said, strict=True):
            kind = questions.kinds[number]
            found.setdefault(kind, []).append(_score(model, questions, number, ids))
        if ids_alone := [n for n in some if not isinstance(questions.answers[n], str)]:
            found.setdefault("tokens", []).extend(_told(model, questions, ids_alone, pictures))
    return found


def _told(
    model: Answering, questions: Questions, numbers: list[int], pictures: Pictures
) -> list[float]:
    """Token accuracy of answers in ids, each word after the true ones: what training counts."""
    asked = [questions.questions[number] for number in numbers]
    truth = [questions.answers[number] for number in numbers]
    return model.token_accuracy(model.prepare_text(pictures(np.array(numbers)), asked, truth))


def _score(model: Answering, questions: Questions, number: int, ids: tuple[int, ...]) -> float:
    """Of ids against ids the share that is right, in place; of texts what their kind says."""
    truth = questions.answers[number]
    if not isinstance(truth, str):
        return sum(a == b for a, b in zip(ids, truth, strict=False)) / max(len(truth), len(ids), 1)
    said = model.tokenizer.decode(list(ids))
    # Through the same tokenizer, which may spread words and digits by blanks.
    plain = model.tokenizer.decode(model.tokenizer.encode(truth))
    return METRICS[questions.kinds[number]](said, plain, questions.regions(number))
