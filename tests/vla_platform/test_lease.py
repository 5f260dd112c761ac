"""One holder at a time, growing numbers, no clocks compared."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from vla_platform import lease as lease_module
from vla_platform.lease import Claimant, Lease, turns
from vla_platform.store import Store, StoreError, open_store
from vla_platform.store_folder import FolderStore


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def taken(claimant: Claimant) -> Lease:
    lease = claimant.try_take()
    assert lease is not None
    return lease


def awaited(claimant: Claimant, seconds: float) -> Lease | None:
    """The lease as soon as it is to be had."""
    deadline = time.monotonic() + seconds
    while (lease := claimant.try_take()) is None and time.monotonic() < deadline:
        time.sleep(claimant.term_s / 8)
    return lease


def test_one_of_many_claimants_wins(store: Store):
    claimants = [Claimant(store, "cell-1") for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        leases = [lease for lease in pool.map(Claimant.try_take, claimants) if lease]
    assert len(leases) == 1 and leases[0].number == 1 and leases[0].held


def test_release_lets_the_next_in_with_a_higher_number(store: Store):
    first = taken(Claimant(store, "a"))
    other = Claimant(store, "a")
    assert other.try_take() is None
    first.release()
    assert not first.held and not first.renew()
    assert taken(other).number == 2


def test_leases_do_not_disturb_each_other(folder: Store):
    taken(Claimant(folder, "a"))
    assert taken(Claimant(folder, "b")).number == 1


def test_a_living_holder_keeps_its_turn(folder: Store):
    other = Claimant(folder, "a", term_s=0.4)
    with taken(Claimant(folder, "a", term_s=0.4)).kept() as lease:
        assert awaited(other, 1.2) is None
        assert lease.held
    assert taken(other).number == 2


def test_a_store_that_refuses_once_is_asked_again(folder: Store, monkeypatch: pytest.MonkeyPatch):
    """A full disk, say: no outage, and no reason to let the turn go."""
    refusals = [StoreError("the disk is full")]

    def put(self: FolderStore, key: str, data: bytes, real: Any = FolderStore.put) -> None:
        if refusals:
            raise refusals.pop()
        real(self, key, data)

    monkeypatch.setattr(FolderStore, "put", put)
    with taken(Claimant(folder, "a", term_s=0.8)).kept() as lease:
        time.sleep(1.2)
        assert lease.held and not refusals


def test_a_dead_holder_is_replaced_and_fenced(folder: Store):
    dead = taken(Claimant(folder, "a", term_s=0.3))
    other = Claimant(folder, "a", term_s=0.3)
    began = time.monotonic()
    successor = awaited(other, 5)
    assert successor is not None and successor.number > dead.number
    assert time.monotonic() - began >= 0.3
    assert not dead.held and not dead.renew() and successor.renew()


def test_wall_clocks_do_not_matter(folder: Store, monkeypatch: pytest.MonkeyPatch):
    holder = taken(Claimant(folder, "a", term_s=30))
    monkeypatch.setattr(time, "time", lambda: 4e9)  # this machine is in the next century
    assert Claimant(folder, "a", term_s=30).try_take() is None
    assert holder.renew()


def test_a_holder_that_slept_finds_the_turn_gone(folder: Store, monkeypatch: pytest.MonkeyPatch):
    """It wakes between two looks of its own clock, so only the fence can tell it."""
    sleeper = taken(Claimant(folder, "a", term_s=0.2))
    assert awaited(Claimant(folder, "a", term_s=0.2), 3) is not None
    sleeper._renewed = time.monotonic()
    assert sleeper.held and not sleeper.renew() and not sleeper.held


def test_a_slow_claimant_waits_its_own_whole_term(folder: Store, monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(lease_module.time, "monotonic", lambda: now[0])
    holder = taken(Claimant(folder, "a", term_s=10))
    watcher = Claimant(folder, "a", term_s=10)
    now[0] += 9
    assert watcher.try_take() is None
    assert holder.renew()
    now[0] += 9
    assert watcher.try_take() is None, "it has not seen this beat for a whole term"
    now[0] += 11
    assert taken(watcher).number == 2


def test_several_workers_do_a_piece_of_work_once(folder: Store):
    done: list[int] = []
    at_it: list[int] = []

    def work() -> None:
        for turn in turns(folder, "work", lambda: bool(done)):
            with turn:
                at_it.append(1)
                time.sleep(0.3)
                done.append(1)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(at_it) == 1
