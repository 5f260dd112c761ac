"""FAST tokens of real demonstrations: how many a chunk takes, and what rounding loses.

    python tests/bench/bench_fast.py --dataset ~/.vla/cache/datasets/libero_object-…

The tokenizer is fitted on four of five episodes and measured on the rest, beside chunks of
noise and constant ones. Errors are shares of the range of the normalised actions, [-1, 1].
Writes tests/bench/fast.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from tests.bench.measured import write
from vlm4vla.aux.fast import SCALE, Fast
from vlm4vla.aux.fast_qa import whole_chunks
from vlm4vla.data.dataset import MANIFEST, Manifest
from vlm4vla.data.normalise import Normaliser, Statistics
from vlm4vla.data.prepared import Prepared

LENGTHS = (4, 10, 20)
RANGE = 2.0
COUNT = 500
"""Chunks of noise, and constant ones."""


def measure(fast: Fast, chunks: np.ndarray) -> dict[str, float]:
    """Tokens of a chunk beside its numbers, and errors in percent of the range."""
    tokens = fast.encode(chunks)
    assert np.array_equal(fast.unpack(tokens), fast.coefficients(chunks)), "packing is not exact"
    wanted = fast.normaliser.forward(chunks).clip(-1, 1)
    error = 100 / RANGE * np.abs(fast.normaliser.forward(fast.decode(tokens)) - wanted)
    mean = float(np.mean([len(row) for row in tokens]))
    return {
        "numbers": int(chunks[0].size),
        "tokens": round(mean, 2),
        "ratio": round(chunks[0].size / mean, 2),
        "mean_error": round(float(error.mean()), 3),
        "rms_error": round(float(np.sqrt((error**2).mean())), 3),
        "max_error": round(float(error.max()), 3),
    }


def split(episodes: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Every fifth episode is held out: of each task, where its episodes lie together."""
    fitted = [actions for i, actions in enumerate(episodes) if i % 5 != 4]
    return fitted, episodes[4::5]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, required=True, help="a prepared dataset's folder")
    parser.add_argument("--scale", type=float, nargs="+", default=[SCALE])
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("fast.json"))
    options = parser.parse_args()
    episodes = [demo.actions for demo in Prepared(options.dataset)]
    normaliser = Normaliser("quantile", Statistics.of(np.concatenate(episodes)))
    fitting, unseen = split(episodes)
    rng, rows = np.random.default_rng(0), []
    for length in LENGTHS:
        noise = normaliser.inverse(rng.uniform(-1, 1, (COUNT, length, 7)))
        level = normaliser.inverse(rng.uniform(-1, 1, (COUNT, 1, 7))).repeat(length, 1)
        wanted, held = (
            np.concatenate([whole_chunks(actions, length) for actions in part])
            for part in (fitting, unseen)
        )
        for scale in options.scale:
            fast = Fast.fit(wanted, normaliser, scale)
            for kind, chunks in (("unseen", held), ("noise", noise), ("constant", level)):
                found = {"chunk": length, "scale": scale, "words": fast.size, "of": kind}
                rows.append({**found, "chunks": len(chunks), **measure(fast, chunks)})
                print("  ".join(f"{name} {value}" for name, value in rows[-1].items()))
    source = Manifest.from_bytes((options.dataset / MANIFEST).read_bytes()).source
    about = {"source": source, "episodes": len(episodes), "actions": sum(map(len, episodes))}
    write(options.json, {**about, "rows": rows})


if __name__ == "__main__":
    main()
