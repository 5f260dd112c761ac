"""Two nodes on one machine: network namespaces with a wire between them."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

NEEDED = pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("ip"), reason="network namespaces need root and `ip`"
)
WIRE = "eth-vla"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def joined(names: tuple[str, str], addresses: tuple[str, str]) -> Iterator[None]:
    """Two namespaces with a wire between them; they are gone afterwards."""
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        other_end = ("type", "veth", "peer", "name", WIRE, "netns", names[1])
        ip("link", "add", WIRE, "netns", names[0], *other_end)
        for name, address in zip(names, addresses, strict=True):
            ip("-n", name, "addr", "add", f"{address}/30", "dev", WIRE)
            ip("-n", name, "link", "set", WIRE, "up")
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def wait_for(done: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"{what} took longer than {seconds:.0f} s"
        time.sleep(0.2)
