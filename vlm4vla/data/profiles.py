"""What a profile does to a benchmark's data; where the two differ, `vlm4vla.recipe` says why."""

from __future__ import annotations

from envs.api import TrainingRecipe
from vlm4vla.recipe import RECIPES


def normalisation(recipe: TrainingRecipe, profile: str) -> str:
    """The chain of `vlm4vla.data.normalise` for a benchmark's recipe under a profile.

    paper: CALVIN clip65, Bridge and LIBERO quantile (A.1). official: the latter then clip again.
    """
    if _from_rlds(recipe) and RECIPES[profile].rescale_after_quantiles:
        return "quantile+clip65"
    return recipe.normalisation


def augmentation(recipe: TrainingRecipe, profile: str) -> str:
    """The row of `vlm4vla.data.augment` for a benchmark's recipe under a profile."""
    chosen = RECIPES[profile].rlds_augmentation
    return chosen if chosen is not None and _from_rlds(recipe) else recipe.augmentation


def _from_rlds(recipe: TrainingRecipe) -> bool:
    """The official code reads Bridge and LIBERO, the data with quantiles, through one loader."""
    return recipe.normalisation == "quantile"
