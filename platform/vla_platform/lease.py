"""Who works on what, while drivers overlap: leases kept in the store.

    leases/<name>/<number>          made once, by whoever holds that turn
    leases/<name>/<number>.beat     overwritten by the holder while it lives

No clocks are compared between machines: a claimant takes over when *it* has watched an
unchanged beat for the whole term on its own monotonic clock. The number of the turn is the
fencing number: it only grows, and a holder that was asleep finds the next turn taken. A lease
saves work, it guards nothing: the ledger commits each key once with or without one.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vla_platform.store import Store, StoreError

log = logging.getLogger(__name__)

TERM_S = 60.0
POLL_S = 0.5
_RELEASED = b"released"


@dataclass
class Lease:
    """A turn that is ours until it is released or not renewed for `term_s` seconds."""

    store: Store
    name: str
    number: int
    term_s: float
    _renewed: float
    _beats: int = 0

    @property
    def held(self) -> bool:
        """False once others may think us gone; stop working then."""
        return time.monotonic() - self._renewed < self.term_s

    def renew(self) -> bool:
        """Say that we live. False when the turn has passed on; then stop working."""
        began = time.monotonic()
        if not self.held or self.store.exists(_turn(self.name, self.number + 1)):
            self._renewed = -self.term_s
            return False
        self._beats += 1
        self.store.put(_beat(self.name, self.number), str(self._beats).encode())
        self._renewed = began  # counted from before the beat: nobody saw it earlier
        return True

    def release(self) -> None:
        """Let the next claimant in at once."""
        if self.renew():
            self.store.put(_beat(self.name, self.number), _RELEASED)
        self._renewed = -self.term_s

    @contextlib.contextmanager
    def kept(self) -> Iterator[Lease]:
        """Renew in the background while the block runs, then release."""
        over = threading.Event()
        thread = threading.Thread(target=self._keep, args=(over,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join()
            self.release()

    def _keep(self, over: threading.Event) -> None:
        while not over.wait(self.term_s / 4):
            try:
                if not self.renew():
                    log.warning("lease %s: turn %d has passed on", self.name, self.number)
                    return
            except StoreError as error:
                log.warning("lease %s: not renewed: %s", self.name, error)


@dataclass
class Claimant:
    """One process's attempts at one lease. Keep it between attempts: it remembers what it saw."""

    store: Store
    name: str
    term_s: float = TERM_S
    _seen: tuple[int, bytes] = (0, b"")
    _since: float = 0.0

    def try_take(self) -> Lease | None:
        """The lease if it is free, released, or its holder silent for a whole term; else None."""
        number = self._latest()
        if number and not self._abandoned(number):
            return None
        began = time.monotonic()
        if self.store.put_new(_turn(self.name, number + 1), b""):
            return Lease(self.store, self.name, number + 1, self.term_s, began)
        return None

    def _latest(self) -> int:
        names = self.store.children(f"leases/{self.name}")
        return max((int(name) for name in names if name.isdigit()), default=0)

    def _abandoned(self, number: int) -> bool:
        try:
            beat = self.store.get(_beat(self.name, number))
        except KeyError:
            beat = b""
        if (number, beat) != self._seen:
            self._seen, self._since = (number, beat), time.monotonic()
        return beat == _RELEASED or time.monotonic() - self._since > self.term_s


def turns(
    store: Store, name: str, done: Callable[[], bool], poll_s: float = POLL_S
) -> Iterator[contextlib.AbstractContextManager[Lease]]:
    """A lease to do a piece of work under, as a context; none once it is done, by whomever.

    for turn in turns(store, "datasets/x", lambda: store.exists("x")):
        with turn:
            make_x()
    """
    claimant = Claimant(store, name)
    while not done():
        lease = claimant.try_take()
        if lease is None:
            time.sleep(poll_s)
        elif done():  # by the holder before us
            lease.release()
        else:
            yield lease.kept()


def _turn(name: str, number: int) -> str:
    return f"leases/{name}/{number:08d}"


def _beat(name: str, number: int) -> str:
    return _turn(name, number) + ".beat"
