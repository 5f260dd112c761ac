"""The training of a policy: what the loop of `vlm4vla.train` is told about a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from envs.api import Benchmark, TrainingRecipe
from vlm4vla.batches import Batches
from vlm4vla.data import profiles
from vlm4vla.data.dataset import Dataset, Fetch, Files
from vlm4vla.data.normalise import Normaliser
from vlm4vla.engine import DTYPES, Engine
from vlm4vla.export import save_policy
from vlm4vla.figures import peak_flops
from vlm4vla.policies import VlmPolicy, build_policy
from vlm4vla.run import Run

T = TypeVar("T")


@dataclass(frozen=True)
class TrainJob:
    """One resolved run on one benchmark row, with its prepared demonstrations on local disk.

    stage: file with the weights of the auxiliary stage that the run starts from, if it does.
    fetch: see `vlm4vla.data.dataset.Dataset`.
    log_every, keep_untrained: see `vlm4vla.train.Job`.
    """

    run: Run
    benchmark: Benchmark
    dataset: Path
    scratch: Path
    engine: Engine = field(default_factory=Engine)
    log_every: int = 50
    keep_untrained: bool = False
    stage: Path | None = None
    fetch: Fetch | None = None

    @property
    def name(self) -> str:
        return self.run.backbone

    @property
    def seed(self) -> int:
        return self.run.seed

    @property
    def recipe(self) -> TrainingRecipe:
        run = self.run
        steps, batch, lr = _required(run.steps), _required(run.batch), _required(run.lr)
        return dataclasses.replace(self.benchmark.recipe, steps=steps, batch=batch, lr=lr)

    def model(self, weights: Path | None) -> VlmPolicy:
        return build_policy(
            self.run,
            self.benchmark.chunk,
            overrides=self.benchmark.recipe.overrides,
            action_spec=self.benchmark.action_spec,
            weights=weights,
            stage=self.stage,
            dtype=DTYPES[self.engine.precision],
        )

    def feed(self, model: VlmPolicy, rank: int, workers: int, parts: int) -> Batches:
        run, row = self.run, self.benchmark
        data = Dataset(self.dataset, model.input_px(run.image_px), model.resize, self.fetch)
        chain = profiles.normalisation(row.recipe, run.profile)
        model.normaliser = normaliser = Normaliser(chain, data.manifest.statistics)
        return Batches(run, row, data, model, normaliser, rank, workers, parts)

    def save(self, model: VlmPolicy, folder: Path, weights: Mapping[str, Tensor]) -> None:
        save_policy(model, self.run, self.benchmark, folder, weights)

    def share_of_peak(self, workers: int) -> float | None:
        peak = peak_flops()
        if peak is None:
            return None
        from vlm4vla import cost  # counts parameters on the meta device, which takes a while

        return cost.training_flops(self.run) / cost.samples(self.run) / (peak * workers)


def make_job(
    run: Run,
    benchmark: Benchmark,
    engine: Engine,
    keep_untrained: bool,
    dataset: Files,
    scratch: Path,
    stage: Path | None = None,
) -> TrainJob:
    """A job from what is known when it is planned and what a worker adds: its local files."""
    return TrainJob(
        run=run.resolved(benchmark.recipe),
        benchmark=benchmark,
        dataset=dataset.folder,
        scratch=scratch,
        engine=engine,
        keep_untrained=keep_untrained,
        stage=stage,
        fetch=dataset.fetch,
    )


def _required(value: T | None) -> T:
    if value is None:
        raise ValueError("train a resolved run: call run.resolved(benchmark.recipe) first")
    return value
