"""Riding out transient failures: exponential back-off with full jitter under one deadline."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 5.0


def ride_out(
    action: Callable[[], T], transient: Callable[[Exception], bool], seconds: float, what: str
) -> T:
    """`action()`, repeated while its exceptions are transient and `seconds` have not passed.

    The last exception is raised as it is; an exception that is not transient at once.
    """
    deadline = time.monotonic() + seconds
    longest = FIRST_PAUSE_S
    while True:
        try:
            return action()
        except Exception as error:
            # Jitter keeps hundreds of workers from knocking again in the same instant.
            pause = random.uniform(longest / 2, longest)
            if not transient(error) or time.monotonic() + pause > deadline:
                raise
            log.warning("%s: %s, again in %.2f s", what, type(error).__name__, pause)
        time.sleep(pause)
        longest = min(2 * longest, LONGEST_PAUSE_S)
