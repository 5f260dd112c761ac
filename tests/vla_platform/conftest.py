"""One SeaweedFS for the whole folder; every test gets a prefix of its own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from vla_platform.store import Store, open_store

from tests.faulty_proxy import FaultyProxy, faulty_proxy
from tests.seaweed import Seaweed, credentials, seaweed


@pytest.fixture(scope="session")
def seaweed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A server shared by many tests: do not kill it, start your own for that."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in credentials().items():
            patch.setenv(name, value)
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        with seaweed(tmp_path_factory.mktemp("seaweed") / "data") as server:
            yield server


@pytest.fixture
def s3_url(seaweed_server: Seaweed) -> str:
    return seaweed_server.url(uuid.uuid4().hex)


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """The same test over both kinds of store."""
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    return open_store(request.getfixturevalue("s3_url"))


@pytest.fixture(scope="session")
def _shared_proxy(seaweed_server: Seaweed) -> Iterator[FaultyProxy]:
    # Shared, because a client for each new address costs half a second.
    with faulty_proxy(seaweed_server.endpoint) as running:
        yield running


@pytest.fixture
def proxy(_shared_proxy: FaultyProxy) -> Iterator[FaultyProxy]:
    """A proxy in front of SeaweedFS, well-behaved until told otherwise."""
    _shared_proxy.reset()
    yield _shared_proxy
    _shared_proxy.reset()
