"""Being told to go: SIGTERM, or a notice that this node is drained."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

EXIT_CODE = 75
"""EX_TEMPFAIL: whoever started the job should start it again."""


class PreemptedError(Exception):
    """The job was told to go and went in order; what was finished is kept."""


@dataclass
class Notice:
    """given: how often; the second one means at once."""

    given: int = 0
    cause: str = ""

    def give(self, cause: str) -> None:
        self.given, self.cause = self.given + 1, self.cause or cause


@contextmanager
def watch() -> Iterator[Notice]:
    """SIGTERM becomes a notice while the block runs, in the main thread."""
    notice = Notice()
    if threading.current_thread() is not threading.main_thread():
        yield notice  # only the main thread is told of signals
        return
    before = signal.signal(signal.SIGTERM, lambda *_: notice.give("SIGTERM"))
    try:
        yield notice
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
