"""Why a training failed: its last error, kept where reports read, beside its figures.

metrics/<run>/error.json     shown until the run is trained to its end
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass

from vla_platform import training
from vla_platform.scrub import shortened
from vla_platform.store import Store, StoreError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """title: what was trained. text: the error with its trace; its last line says what it is.
    final: another try would meet it again. at: seconds since 1970, UTC."""

    title: str
    text: str
    final: bool
    at: float

    @property
    def last_line(self) -> str:
        return (self.text.strip().splitlines() or [""])[-1]


def record(store: Store, run: str, title: str, error: Exception) -> None:
    """Keep the error in place of an earlier one; errors of the store itself cannot be kept."""
    if isinstance(error, StoreError):
        return
    text = shortened(training.trace(error))
    found = Failure(title, text, training.is_final(error), time.time())
    try:
        store.put(_key(run), json.dumps(asdict(found)).encode())
    except StoreError as unstored:
        log.warning("the error of run %s is not stored: %s", run, unstored)


def last(store: Store, run: str) -> Failure | None:
    key = _key(run)
    return Failure(**json.loads(store.get(key))) if store.exists(key) else None


def _key(run: str) -> str:
    return f"metrics/{run}/error.json"
