"""Turns for readers that are compared on one machine: each reads while the others wait."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any


def serve(batches: Iterator[Any], batch: int, ahead: int) -> None:
    """A line on stdin is a turn of so many seconds; its samples per second go to stdout.

    ahead: batches that were read before the turn and do not count.
    """
    for line in sys.stdin:
        for _ in range(ahead):
            next(batches)
        samples, began = 0, time.monotonic()
        while (spent := time.monotonic() - began) < float(line):
            next(batches)
            samples += batch
        print(json.dumps(samples / spent), flush=True)
