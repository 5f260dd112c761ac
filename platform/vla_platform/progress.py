"""Progress lines with rate and time left: a bar on a terminal, sparse lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

from vla_platform.assignments import Tally

LOG_EVERY_S = 10.0
MOST_TASKS = 10
LONGEST_TASK = 24


class Meter:
    """One line of progress; use as a context manager."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar: tqdm[None] | None = None
        self.began = self.said = time.monotonic()

    def tally(self, tally: Tally) -> None:
        """A pool's state: done, running, errors, missing, episodes/min, success by task."""
        ended = tally.done + len(tally.errors)
        rate = 60 * ended / max(1e-9, time.monotonic() - self.began)
        note = (
            f"{tally.done} done, {tally.running} running, {len(tally.errors)} errors, "
            f"{tally.missing} missing, {rate:.0f} episodes/min"
        )
        if tally.pending:
            note += f", {tally.pending} hosts wait for a place"
        self.show(ended, tally.total, note + _by_task(tally))

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


def _by_task(tally: Tally) -> str:
    """Success so far: of each task in the order of its name, or of all if there are too many."""
    if len(tally.tasks) > MOST_TASKS:
        return f"; {tally.successes}/{tally.done} in {len(tally.tasks)} tasks"
    scores = [
        f"{shorten(task)} {won}/{played}" for task, (won, played) in sorted(tally.tasks.items())
    ]
    return "; " + ", ".join(scores) if scores else ""


def shorten(task: str) -> str:
    """A name that fits a line; the end of a long one tells tasks apart best."""
    return task if len(task) <= LONGEST_TASK else "…" + task[1 - LONGEST_TASK :]
