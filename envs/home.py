"""Where simulators, caches and the default store live."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """`VLA_HOME`, absolute; `~/.vla` where it is empty or not set."""
    return Path(os.environ.get("VLA_HOME") or "~/.vla").expanduser().absolute()


def cache() -> Path:
    """What may be deleted at any time: `VLA_CACHE`, else a folder under `home()`.

    Where nodes share a home, `VLA_CACHE` names a disk of each node's own.
    """
    return Path(os.environ.get("VLA_CACHE") or home() / "cache").expanduser().absolute()
