"""SeaweedFS behind a proxy that fails on demand: nothing lost, nothing done twice."""

from __future__ import annotations

import dataclasses
import logging
import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from vla_platform import store_s3
from vla_platform.store import Store, StoreError, StoreUnavailableError, open_store

from tests.faulty_proxy import Fault, FaultyProxy
from tests.seaweed import Seaweed, seaweed

LOST, CUT = Fault(lost=True), Fault(cut=True)
HICCUPS = [
    Fault(status=500),
    Fault(status=503, code="SlowDown"),
    Fault(status=409, code="ConditionalRequestConflict"),
    Fault(status=429, code="TooManyRequests"),
    CUT,
    LOST,
    Fault(delay_s=0.3),
]


@pytest.fixture
def shaky(proxy: FaultyProxy) -> Store:
    return open_store(f"s3://exp/{uuid.uuid4().hex}?endpoint={proxy.endpoint}")


@pytest.mark.parametrize("fault", HICCUPS, ids=str)
def test_a_hiccup_is_ridden_out(shaky: Store, proxy: FaultyProxy, fault: Fault, tmp_path: Path):
    proxy.plan(fault)
    shaky.put("k", b"v")
    proxy.plan(fault)
    assert shaky.put_new("new", b"v")
    for read in (shaky.get, shaky.exists, lambda key: list(shaky.list(key))):
        proxy.plan(fault, on="HEAD" if read == shaky.exists else "GET")
        assert read("k")
    proxy.plan(fault, on="DELETE")
    shaky.delete("k")
    assert not shaky.exists("k")
    assert not proxy.planned


def test_a_winner_whose_answer_was_lost_is_told_so(shaky: Store, proxy: FaultyProxy):
    proxy.plan(LOST, Fault(status=500), LOST)
    assert shaky.put_new("k", b"mine")
    assert not shaky.put_new("k", b"another's")
    assert shaky.get("k") == b"mine"


def test_a_loser_whose_answer_was_lost_is_told_so(shaky: Store, proxy: FaultyProxy):
    assert shaky.put_new("k", b"first")
    proxy.plan(LOST)
    assert not shaky.put_new("k", b"second")


def test_repeating_a_failed_call_with_its_token(shaky: Store, proxy: FaultyProxy):
    """The first call gives up although its write took effect; the second is told it won."""
    hasty = dataclasses.replace(shaky, patience=0.0)
    proxy.plan(LOST)
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        hasty.put_new("k", b"mine", writer="token-1")
    assert not shaky.put_new("k", b"other", writer="token-2")
    assert shaky.put_new("k", b"mine", writer="token-1")


def test_sixteen_writers_with_lost_answers_have_one_winner(shaky: Store, proxy: FaultyProxy):
    proxy.plan(*[LOST] * 8)

    def write(index: int) -> bool:
        return shaky.put_new("contended", b"%d" % index)

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(write, range(16)))
    assert sum(outcomes) == 1
    assert shaky.get("contended") == b"%d" % outcomes.index(True)


def test_transfers_ride_out_faults(shaky: Store, proxy: FaultyProxy, tmp_path: Path):
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(random.Random(0).randbytes(18 << 20))
    proxy.plan(Fault(status=500), CUT, LOST)
    shaky.upload(source, "big")
    proxy.plan(CUT, Fault(status=503), on="GET")
    shaky.download("big", copy)
    assert copy.read_bytes() == source.read_bytes() and not proxy.planned


def test_patience_ends_with_a_clear_error(shaky: Store, proxy: FaultyProxy):
    proxy.rule = lambda method, path: Fault(status=503, code="SlowDown")
    hasty = dataclasses.replace(shaky, patience=0.4)
    began = time.monotonic()
    with pytest.raises(StoreUnavailableError, match=r"answers 503 SlowDown for 0.4 s; check"):
        hasty.put("k", b"v")
    assert time.monotonic() - began < 3 and proxy.injected >= 3


def test_a_silent_server_times_out(shaky: Store, proxy: FaultyProxy, monkeypatch):
    monkeypatch.setattr(store_s3, "READ_S", 0.3)
    store_s3._built_client.cache_clear()
    proxy.plan(Fault(delay_s=1.0))
    assert shaky.put_new("k", b"v")
    store_s3._built_client.cache_clear()


def test_denials_are_not_retried(shaky: Store, proxy: FaultyProxy):
    proxy.rule = lambda method, path: Fault(status=403, code="AccessDenied")
    with pytest.raises(StoreError, match="access denied"):
        shaky.put("k", b"v")
    assert proxy.injected == 1


def test_probe_refuses_a_server_that_ignores_the_condition(
    shaky: Store, monkeypatch: pytest.MonkeyPatch
):
    """The real server, with the condition stripped from what it hears."""
    real = store_s3._client

    def deaf(*wanted: object) -> object:
        client = real(*wanted)
        strip = lambda request, **_: request.headers.__delitem__("If-None-Match")  # noqa: E731
        client.meta.events.register("before-sign.s3.PutObject", strip)
        return client

    monkeypatch.setattr(store_s3, "_client", deaf)
    with pytest.raises(StoreError, match="ignores If-None-Match"):
        shaky.probe()
    store_s3._built_client.cache_clear()


def test_retries_are_logged_without_secrets(
    shaky: Store, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
):
    proxy.plan(CUT)
    with caplog.at_level(logging.DEBUG, logger="vla_platform"):
        shaky.put("k", b"v")
    assert "put k: " in caplog.text and "planted" not in caplog.text


def test_a_storm_loses_and_doubles_nothing(shaky: Store, proxy: FaultyProxy):
    """A third of all requests go wrong; 8 threads race two by two for 16 keys."""
    dice, lock = random.Random(7), threading.Lock()

    def storm(method: str, path: str) -> Fault | None:
        with lock:
            return dice.choice(HICCUPS) if dice.random() < 1 / 3 else None

    proxy.rule = storm
    keys = [f"k{index}" for index in range(16)]

    def write(job: tuple[str, str]) -> tuple[str, str, bool]:
        key, writer = job
        return key, writer, shaky.put_new(key, writer.encode())

    jobs = [(key, f"{key}-{writer}") for key in keys for writer in "ab"]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(write, jobs))
    proxy.rule = lambda method, path: None
    winners = {key: writer for key, writer, won in results if won}
    assert sum(won for _, _, won in results) == len(keys) == len(winners)
    assert all(shaky.get(key).decode() == winners[key] for key in keys)
    assert proxy.injected >= 8


@pytest.mark.full
def test_kill_9_of_the_server_loses_no_answered_write(seaweed_server: Seaweed, tmp_path: Path):
    with seaweed(tmp_path / "data") as server:
        store = open_store(server.url())
        answered: list[str] = []
        over = threading.Event()

        def write(writer: int) -> None:
            index = 0
            while not over.is_set():
                key = f"w{writer}/{index}"
                assert store.put_new(key, key.encode())
                answered.append(key)
                index += 1

        with ThreadPoolExecutor(4) as pool:
            writers = [pool.submit(write, index) for index in range(4)]
            for pause in (1.0, 0.4, 0.7):
                time.sleep(pause)
                server.kill()
                time.sleep(0.3)
                server.start()
            time.sleep(1.0)
            over.set()
            for writer in writers:
                writer.result(timeout=60)
        assert len(answered) > 20
        assert all(store.get(key) == key.encode() for key in answered)
