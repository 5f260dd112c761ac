"""The one hash behind every identity: runs, episodes, cells, fingerprints.

Standard library only at import and Python 3.8, because simulator children import `envs`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path


def canonical_json(value: object) -> str:
    """Plain values as JSON that is the same for equal values: sorted keys, no spaces, ASCII.

    Floats are written by their shortest repr. ValueError for NaN and infinities, which are
    not JSON and do not equal themselves; TypeError for anything that is not a plain value.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def stable_hash(value: object) -> str:
    """64 hex digits: sha256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def commit(folder: Path) -> str:
    """The commit of the git checkout that a simulator's folder lies in; needs GitPython."""
    git = importlib.import_module("git")
    return str(git.Repo(folder, search_parent_directories=True).head.object.hexsha)
