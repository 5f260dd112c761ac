"""Where simulators, caches and the default store live."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """`VLA_HOME`, absolute; `~/.vla` where it is empty or not set."""
    return Path(os.environ.get("VLA_HOME") or "~/.vla").expanduser().absolute()
