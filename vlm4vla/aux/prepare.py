"""A stage's questions, from wherever its rows are published, to prepared shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from vlm4vla.aux import questions
from vlm4vla.aux.actions import action_samples
from vlm4vla.aux.datasets import dataset
from vlm4vla.aux.drawings import Drawing, drawings, write
from vlm4vla.aux.questions import Manifest
from vlm4vla.aux.readers import Bad, read
from vlm4vla.aux.samples import Sample
from vlm4vla.stages import AuxStage


def prepare_questions(
    stage: AuxStage, folders: Mapping[str, Path], put: Callable[[str, bytes], None]
) -> Manifest:
    """Write the stage's data. folders: of its rows, by name; those made here need none.

    ValueError for a row without a folder, FileNotFoundError for one without its files.
    """
    needed = [row for row in stage.rows if row.of_demonstrations or not row.made_here]
    missing = [row.name for row in needed if row.name not in folders]
    if missing:
        raise ValueError(f"no folder was named for {', '.join(missing)} of the stage {stage.name}")
    sources = {}
    for row in stage.rows:
        folder = folders.get(row.name, Path("."))
        if row.of_demonstrations:
            found: Iterable[Sample | Bad] = action_samples(row, stage.backbone, folder, put)
        else:
            found = read(row, folder)
        sources[row.name] = row.samples, found
    drawn = () if stage.draws is None else write(_scenes(stage.draws, folders), put)
    return questions.prepare(stage.data, sources, put, drawn)


def _scenes(name: str, folders: Mapping[str, Path]) -> Iterator[Drawing]:
    return drawings(dataset(name), folders.get(name, Path(".")))
