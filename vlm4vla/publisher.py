"""Sends checkpoints on their way in a thread, while the step loop goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as await_futures

POLL_S = 0.5


class Publisher:
    """One piece of work at a time, so that host memory holds one copy of the state at most.

    beat: called while waiting, because waiting for a slow store is progress too. What the
    work raises is raised by the next call here.
    """

    def __init__(self, beat: Callable[[], None]) -> None:
        self.beat = beat
        self._pool = ThreadPoolExecutor(1, "publisher")
        self._pending: Future[None] | None = None

    def submit(self, work: Callable[[], None]) -> None:
        """Wait for the work before, then start this one."""
        self.wait()
        self._pending = self._pool.submit(work)

    def check(self) -> None:
        """Raise what finished work raised; never waits."""
        if self._pending is not None and self._pending.done():
            self._pending.result()
            self._pending = None

    def wait(self) -> None:
        """Until nothing is on its way."""
        while self._pending is not None:
            self.beat()
            await_futures([self._pending], POLL_S)
            self.check()

    def close(self) -> None:
        """Let running work end by itself; its result has no reader any more."""
        self._pool.shutdown(wait=False)
