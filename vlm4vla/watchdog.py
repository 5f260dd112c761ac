"""Ends a worker that makes no progress, after writing down where each of its threads stands.

A collective whose partner is gone can wait for ever. Every worker watches itself, so every
worker's stacks reach the log; whoever started the workers then starts them again.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import tempfile
import threading
import time
from types import TracebackType

log = logging.getLogger(__name__)

GRACE_S = 3.0
"""Between writing down and ending, so that the other workers also come to write."""
EXIT_CODE = 70


class Watchdog:
    """Watches a block: it must `beat` at least every `seconds`; None watches nothing."""

    def __init__(self, seconds: float | None, who: str) -> None:
        self.seconds, self.who = seconds, who
        self.step, self._last = 0, time.monotonic()
        self._over = threading.Event()

    def beat(self, step: int | None = None) -> None:
        self._last = time.monotonic()
        if step is not None:
            self.step = step

    def __enter__(self) -> Watchdog:
        self.beat()
        if self.seconds is not None:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()

    def _watch(self) -> None:
        assert self.seconds is not None
        while not self._over.wait(min(1.0, self.seconds / 10)):
            idle = time.monotonic() - self._last
            if idle > self.seconds:
                log.error(
                    "%s: no progress for %.0f s after step %d; ending it. Its stacks:\n%s",
                    *(self.who, idle, self.step, stacks()),
                )
                self._over.wait(GRACE_S)
                os._exit(EXIT_CODE)


def stacks() -> str:
    """Where each thread of this process stands."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
