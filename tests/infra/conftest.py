"""Local services on free ports, started once for the tests that need them."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from infra.services import Services
from tests.seaweed import binds

USED = (0, 1, 2, 3, 4, 64, 65, *range(70, 80), 90)
"""Offsets from the first port; the first five have twins 10000 higher."""


def free_base() -> int:
    for base in random.sample(range(20_000, 22_500, 100), 25):
        ports = [base + offset for offset in USED] + [base + 10_000 + n for n in USED[:5]]
        if all(binds(port) for port in ports):
            return base
    raise RuntimeError("no 100 free ports between 20000 and 22600")


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """SeaweedFS alone, with an identity for each role."""
    services = Services(tmp_path_factory.mktemp("services"), free_base())
    services.access().write(services.environment())
    server = services.seaweedfs()
    server.start()
    yield services
    server.stop()
