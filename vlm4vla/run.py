"""`Run`: everything that changes a policy's weights, and nothing else."""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass

from envs.api import Benchmark, TrainingRecipe
from envs.hashing import stable_hash

SCHEMA = 1
"""Version of the run's fields; part of every id, raised when their meaning changes."""

FREEZE_GROUPS = ("vision", "embed", "llm")
INITS = ("pretrained", "scratch")
PROFILES = ("paper", "official")
PROMPTS = ("native", "short")
POLICY_KINDS = ("action_query", "openvla", "pi0")
"""The keys of `vlm4vla.policies.POLICIES`, known without importing torch."""


_TEXTS = dict.fromkeys(("backbone", "benchmark", "policy"), str)
_NUMBERS = {"lr": float, **dict.fromkeys(("steps", "batch", "image_px", "seed"), int)}


def _check(name: str, value: object, kind: type) -> None:
    """ValueError for values that only look right: 1 and 1.0 are one rate with two ids."""
    if value is None and name in ("lr", "steps", "batch"):
        return
    if type(value) is not kind:
        raise ValueError(f"Run.{name} is {value!r:.99}: give a plain {kind.__name__}.")
    least = 0 if name == "seed" else 1 if kind is int else sys.float_info.min
    most = math.inf if kind is float else 2**63
    if kind is not str and not least <= value < most:  # type: ignore[operator]
        raise ValueError(f"Run.{name} is {value}, not a positive number.")


@dataclass(frozen=True)
class Run:
    """One training. `None` means "as the benchmark's recipe says"; `resolved` fills it in.

    dataset: id of the prepared demonstrations, None while it is not said which.
    freeze: groups that get no gradient (Table 3). init: Table 8. prompt: Table 6.
    image_px: Table 7. aux: id of the auxiliary stage the backbone starts from (Table 10).
    """

    backbone: str
    benchmark: str
    dataset: str | None = None
    policy: str = "action_query"
    aux: str | None = None
    freeze: tuple[str, ...] = ()
    init: str = "pretrained"
    lr: float | None = None
    steps: int | None = None
    batch: int | None = None
    prompt: str = "native"
    image_px: int = 224
    profile: str = "paper"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "freeze", tuple(sorted(set(self.freeze))))
        for name, value, known in (
            *(("freeze", group, FREEZE_GROUPS) for group in self.freeze),
            ("init", self.init, INITS),
            ("profile", self.profile, PROFILES),
            ("prompt", self.prompt, PROMPTS),
        ):
            if value not in known:
                raise ValueError(f"Run.{name}: {value!r} is not one of {', '.join(known)}.")
        for name, kind in {**_TEXTS, **_NUMBERS}.items():
            _check(name, getattr(self, name), kind)

    def resolved(self, recipe: TrainingRecipe) -> Run:
        """The run with every `None` replaced by the benchmark's value."""
        return dataclasses.replace(
            self,
            lr=recipe.lr if self.lr is None else self.lr,
            steps=recipe.steps if self.steps is None else self.steps,
            batch=recipe.batch if self.batch is None else self.batch,
        )

    def id(self, benchmark: Benchmark) -> str:
        """16 hex digits of the resolved run: an explicit default *is* the default run."""
        if benchmark.name != self.benchmark:
            raise ValueError(f"run is on {self.benchmark!r}, not on {benchmark.name!r}")
        resolved = self.resolved(benchmark.recipe)
        # The run's own steps, batch and lr stand for the recipe's; checkpoints change no weight.
        recipe = dataclasses.asdict(
            dataclasses.replace(benchmark.recipe, steps=0, batch=0, lr=0.0, checkpoints=())
        )
        fields = {**dataclasses.asdict(resolved), "chunk": benchmark.chunk, "recipe": recipe}
        return stable_hash({"schema": SCHEMA, **fields})[:16]
