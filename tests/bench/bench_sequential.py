"""How often the sequential test stops the best cell, and how many episodes it saves.

    .venv/bin/python -m tests.bench.bench_sequential --studies 300 --json PATH

Simulated studies shaped like the three benchmarks: checkpoints × horizons that share the
difficulty of their initial states, with ability rising over checkpoints, or all equal.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.bench.measured import write
from tests.bench.racing import full_winner, race

ERROR = 0.05
HORIZONS = 3


@dataclass(frozen=True)
class Shape:
    """spread: of ability between checkpoints, in logits. length: subtasks of an episode."""

    checkpoints: int
    states: int
    batch: int
    spread: float
    length: int = 1


SHAPES = {
    "bridge": Shape(10, 96, 12, 0.6),
    "bridge, all equal": Shape(10, 96, 12, 0.0),
    "bridge, one far ahead": Shape(10, 96, 12, 2.0),
    "libero": Shape(10, 500, 50, 0.6),
    "calvin": Shape(5, 1000, 50, 0.6, 5),
    "calvin, all equal": Shape(5, 1000, 50, 0.0, 5),
}


def outcomes(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """[C, N] scores from 0 to 1 in a random order of states; cells ordered by checkpoint."""
    cells = shape.checkpoints * HORIZONS
    ability = shape.spread * (
        np.repeat(rng.normal(size=shape.checkpoints), HORIZONS) + 0.5 * rng.normal(size=cells)
    )
    hardness = rng.normal(0, 1.5, size=shape.states)
    chance = 1 / (1 + np.exp(-(ability[:, None] - hardness)))
    wins = rng.random((shape.length, *chance.shape)) < chance ** (1 / shape.length)
    return np.cumprod(wins, axis=0).mean(axis=0)


def measure(shape: Shape, studies: int, seed: int = 0, streamed: bool = False) -> dict[str, float]:
    """Wrong: full evaluation would have chosen another cell (of equal scores the first)."""
    rng, wrong, saved = np.random.default_rng(seed), 0, []
    cells = shape.checkpoints * HORIZONS
    groups = np.arange(cells).reshape(shape.checkpoints, HORIZONS).tolist() if streamed else None
    for _ in range(studies):
        scores = outcomes(shape, rng)
        found = race(scores, ERROR, shape.batch, groups)
        wrong += found.winner != full_winner(scores)
        saved.append(found.saved(shape.states))
    return {
        "studies": studies,
        "cells": studies * cells,
        "wrong": wrong,
        "error_rate": wrong / studies,
        "episodes_saved": round(float(np.mean(saved)), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=300)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for name, shape in SHAPES.items():
        for streamed in (False, True):
            row = {"shape": name, "streamed": streamed}
            row |= measure(shape, options.studies, streamed=streamed)
            print(row, flush=True)
            rows.append(row)
    if options.json:
        write(options.json, {"error": ERROR, "rows": rows})


if __name__ == "__main__":
    main()
