"""Where things lie by default: absolute, because a submitted job runs in a copy of the tree."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def home() -> Path:
    """`VLA_HOME`, else `~/.vla`: the default store, caches and simulator environments."""
    return Path(os.environ.get("VLA_HOME", "~/.vla")).expanduser().absolute()


def default_store() -> str:
    """`VLA_STORE`, else a folder under `home()`."""
    return os.environ.get("VLA_STORE") or str(home() / "store")


def cache() -> Path:
    """Local copies of datasets and policies; safe to delete at any time."""
    return home() / "cache"


def cache_limit() -> int:
    """Bytes that local copies of datasets may take: `VLA_CACHE_GB`, else half of their disk."""
    told = os.environ.get("VLA_CACHE_GB")
    if told:
        return int(float(told) * 1e9)
    cache().mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(cache()).total // 2
