"""The one hash behind every identity: runs, episodes, cells, fingerprints.

Standard library only and Python 3.8, because simulator children import `envs`.
"""

from __future__ import annotations

import hashlib
import json


def canonical_json(value: object) -> str:
    """Plain values as JSON that is the same for equal values: sorted keys, no spaces, ASCII.

    Floats are written by their shortest repr. ValueError for NaN and infinities, which are
    not JSON and do not equal themselves; TypeError for anything that is not a plain value.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def stable_hash(value: object) -> str:
    """64 hex digits: sha256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
