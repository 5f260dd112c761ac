"""Progress lines with rate and time left: a bar on a terminal, sparse lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

from vla_platform.rollouts import Tally

LOG_EVERY_S = 10.0


class Meter:
    """One line of progress; use as a context manager."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar: tqdm[None] | None = None
        self.began = self.said = time.monotonic()

    def tally(self, tally: Tally) -> None:
        """Show a pool's state: done, successes, running, errors."""
        rate = 60 * tally.done / max(1e-9, time.monotonic() - self.began)
        left = tally.total - tally.done - len(tally.errors)
        note = (
            f"{rate:.0f} episodes/min, {tally.successes} successes, {tally.running} running, "
            f"{len(tally.errors)} errors, {left} to go"
        )
        self.show(tally.done + len(tally.errors), tally.total, note)

    def show(self, done: int, total: int, note: str = "") -> None:
        if self.bar is None:
            quiet = not sys.stderr.isatty()
            self.bar = tqdm(total=total, desc=self.title, disable=quiet, dynamic_ncols=True)
        self.bar.n = done
        self.bar.set_postfix_str(note)
        if self.bar.disable and (time.monotonic() - self.said > LOG_EVERY_S or done >= total):
            self.said = time.monotonic()
            elapsed = self.said - self.began
            eta = elapsed * (total - done) / max(1, done)
            print(  # noqa: T201
                f"{self.title}: {done}/{total} {elapsed:.0f}s, ~{eta:.0f}s left, {note}", flush=True
            )

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.close()
