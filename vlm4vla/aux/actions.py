"""Prepared demonstrations as a stage's questions: the tokenizer is fitted, then the answers made.

Table 4's stage. The fitted tokenizer is stored beside the questions, to read answers with.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float

from envs.api import Demonstration
from envs.benchmarks import benchmark
from vlm4vla.aux.datasets import VqaDataset
from vlm4vla.aux.fast import SCALE, VOCABULARY, Fast
from vlm4vla.aux.fast_qa import ActionWords, samples, whole_chunks
from vlm4vla.aux.samples import Sample
from vlm4vla.backbones import backbone
from vlm4vla.data import profiles
from vlm4vla.data.dataset import MANIFEST, Manifest
from vlm4vla.data.normalise import Normaliser
from vlm4vla.data.prepared import Prepared
from vlm4vla.tokenizers import tokenizer_of

TINY_VOCABULARY, TINY_SCALE = 16, 3.0
"""Words and levels of a tiny backbone's actions. What the tabletop's expert does after its first
action depends on noise that no picture shows, and finer words spell that noise: of 256 at the
published scale even who knows the scene exactly says at most 52% right, of these 93%."""
MOST_CHUNKS = 100_000
"""Chunks that a tokenizer is fitted on, at most."""


def action_samples(
    row: VqaDataset, name: str, folder: Path, put: Callable[[str, bytes], None]
) -> Iterator[Sample]:
    """Questions for what to do, answered in words of the backbone called `name`.

    folder: prepared demonstrations of the benchmark `row.source`. put: (file name, bytes), for
    the fitted tokenizer.
    """
    target, model = benchmark(row.source), backbone(name)
    statistics = Manifest.from_bytes((folder / MANIFEST).read_bytes()).statistics
    normaliser = Normaliser(profiles.normalisation(target.recipe, "paper"), statistics)
    chunks = _chunks(folder, target.chunk)
    some = chunks[:: -(-len(chunks) // MOST_CHUNKS)]
    scale, words = (TINY_SCALE, TINY_VOCABULARY) if model.tiny else (SCALE, VOCABULARY)
    fast = Fast.fit(some, normaliser, scale, words)
    with tempfile.TemporaryDirectory() as scratch:
        fast.save(Path(scratch))
        for path in sorted(Path(scratch).iterdir()):
            put(path.name, path.read_bytes())
    spelled = ActionWords.of(fast, model, tokenizer_of(model))
    every = -(-len(chunks) // row.samples)
    return samples(_demonstrations(folder), spelled, every)


def _demonstrations(folder: Path) -> Iterator[Demonstration]:
    source = Prepared(folder)
    return (source.read(number) for number in range(len(source)))


def _chunks(folder: Path, length: int) -> Float[np.ndarray, "N k 7"]:
    """Every whole chunk of the demonstrations, read without their pictures."""
    found = []
    for shard in Manifest.from_bytes((folder / MANIFEST).read_bytes()).shards:
        data = io.BytesIO((folder / shard.name).read_bytes())
        table = pq.read_table(data, columns=["episode", "action"])
        episodes, actions = table["episode"].to_numpy(), np.array(table["action"].to_pylist())
        cuts = np.flatnonzero(np.diff(episodes)) + 1
        found += [whole_chunks(part, length) for part in np.split(actions, cuts)]
    return np.concatenate(found).astype(np.float32)
