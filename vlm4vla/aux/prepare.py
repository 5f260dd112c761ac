"""A stage's questions, from wherever its rows are published, to prepared shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from vlm4vla.aux import questions
from vlm4vla.aux.questions import Manifest
from vlm4vla.aux.readers import read
from vlm4vla.stages import AuxStage


def prepare_questions(
    stage: AuxStage, folders: Mapping[str, Path], put: Callable[[str, bytes], None]
) -> Manifest:
    """Write the stage's data. folders: of its rows, by name; those made here need none.

    KeyError for a row without a folder, FileNotFoundError for one without its files.
    """
    missing = [row.name for row in stage.rows if not row.made_here and row.name not in folders]
    if missing:
        raise KeyError(f"no folder was named for {', '.join(missing)} of the stage {stage.name}")
    sources = {
        row.name: (row.samples, read(row, folders.get(row.name, Path(".")))) for row in stage.rows
    }
    return questions.prepare(stage.data, sources, put)
