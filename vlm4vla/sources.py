"""Where the published files of full-size backbones are read: a folder on disk, else the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm4vla.backbones import Backbone

WEIGHTS = "VLA_WEIGHTS"
"""Environment variable: a folder of folders with weights and tokenizer, each named as its row."""


def source_of(row: Backbone) -> str:
    """The row's folder in `VLA_WEIGHTS` where there is one, else its hub id."""
    folder = Path(os.environ.get(WEIGHTS, "")).expanduser() / row.name
    return str(folder) if os.environ.get(WEIGHTS) and folder.is_dir() else row.hub_id


def remedy(row: Backbone) -> str:
    """What to do where the files of a full-size row cannot be read."""
    return (
        f"Put the files of {row.hub_id} into {WEIGHTS}/{row.name} ({WEIGHTS} is "
        f"{os.environ.get(WEIGHTS) or 'not set'}) or, downloaded elsewhere, into HF_HOME"
    )
