"""A training's checkpoints in the store: complete or invisible, checked when they are read."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from vla_platform import artifacts, places
from vla_platform.artifacts import Checkpoint
from vla_platform.curves import Curves
from vla_platform.store import Store, StoreUnavailableError, check_key
from vla_platform.store_folder import beside

log = logging.getLogger(__name__)

POLL_S = 0.1
OTHERS_S = 1800.0
"""How long worker 0 waits for the others' parts of a checkpoint."""


class Part(Protocol):
    """A worker's part of a checkpoint; see `vlm4vla.checkpoints.Part`."""

    @property
    def step(self) -> int: ...
    @property
    def folder(self) -> Path: ...
    @property
    def rank(self) -> int: ...
    @property
    def state(self) -> str | None: ...
    @property
    def attempt(self) -> str: ...
    @property
    def parts(self) -> int: ...
    @property
    def evaluated(self) -> bool: ...


class StoreSink:
    """A run's checkpoints and figures in the store; the `Sink` of `vlm4vla.checkpoints`.

    show: told each report's last row. noticed: whether this machine is to be taken away.
    """

    def __init__(
        self,
        store: Store,
        run: str,
        scratch: Path,
        show: Callable[[Mapping[str, float]], None],
        noticed: Callable[[], bool],
    ) -> None:
        self.store, self.run, self.scratch = store, run, scratch
        self.show, self.noticed = show, noticed
        self.curves = Curves(store, run, scratch / "tensorboard")
        self.digest = ""

    def candidates(self) -> list[int]:
        """Steps of complete checkpoints whose optimiser files have not been pruned."""
        there = set(self.store.list(f"training/{self.run}/"))
        found = artifacts.checkpoints(self.store, self.run)
        return [c.step for c in reversed(found) if c.state and set(state_keys(c)) <= there]

    def fetch(self, step: int, state: str) -> Path:
        """The policy and the optimiser's files, each checked against the marker's digests.

        The node's workers share the folder, and each fetches what it needs and none has. It is
        in the cache: what is not used may make room for others after `places.RECENT_S`.
        """
        found = {c.step: c for c in artifacts.checkpoints(self.store, self.run)}[step]
        names = dict(found.state)
        wanted = {state: names[state]} if state in names else names
        prefix = artifacts.state_prefix(self.run, step, found.attempt)
        folder = places.cache() / check_key(prefix)
        for name, digest in wanted.items():
            self._fetch(f"{prefix}/{name}", folder / check_key(name), digest)
        weights = artifacts.WEIGHTS
        self._fetch(found.key(weights), folder / weights, found.digest)
        places.trim({folder / name for name in (*wanted, weights)})
        return folder

    def _fetch(self, key: str, path: Path, digest: str) -> None:
        """A file gets its name once it is sound: the other workers need not read it all again."""
        with artifacts.locked(path.parent, path.name):
            if places.recent(path):
                os.utime(path)  # used, for `places.trim`
                return
            with beside(path) as part:
                with contextlib.suppress(FileNotFoundError):
                    os.replace(path, part)  # an old copy; under this name it is not trimmed
                if not _sound(Path(part), digest):
                    self.store.download(key, part)
                    if not _sound(Path(part), digest):
                        raise ValueError(
                            f"{key} is damaged: it does not have the digest its marker names"
                        )
                os.utime(part)

    def publish(self, part: Part) -> None:
        """The optimiser's file and a note of its digest; from worker 0 the policy too."""
        if part.state is not None:
            key = f"{artifacts.state_prefix(self.run, part.step, part.attempt)}/{part.state}"
            self.store.upload(part.folder / part.state, key)
            note = {"sha256": artifacts.file_digest(part.folder / part.state)}
            self.store.put(f"{key}.json", json.dumps(note).encode())
        if part.rank == 0:
            artifacts.publish_policy(self.store, self.run, part.step, part.folder, part.attempt)
            self.digest = artifacts.file_digest(part.folder / artifacts.WEIGHTS)

    def commit(self, part: Part) -> None:
        """One marker makes policy and state visible together; the figures up to it come before."""
        state = self._notes(part)
        self.curves.settle()
        artifacts.complete_policy(
            self.store,
            self.run,
            part.step,
            self.digest,
            evaluated=part.evaluated,
            attempt=part.attempt,
            state=state,
            folder=part.attempt,
        )

    def _notes(self, part: Part) -> dict[str, str]:
        """Digests of every worker's file, once all are there."""
        prefix = artifacts.state_prefix(self.run, part.step, part.attempt)
        deadline = time.monotonic() + OTHERS_S
        while True:
            keys = [key for key in self.store.list(f"{prefix}/") if key.endswith(".json")]
            if len(keys) >= part.parts:
                break
            if time.monotonic() > deadline:
                raise StoreUnavailableError(
                    f"only {len(keys)} of {part.parts} workers have stored their part of step "
                    f"{part.step} of {self.run} within {OTHERS_S:.0f} s"
                )
            time.sleep(POLL_S)
        names = {key.removeprefix(f"{prefix}/").removesuffix(".json"): key for key in keys}
        return {name: json.loads(self.store.get(key))["sha256"] for name, key in names.items()}

    def report(self, rows: Sequence[Mapping[str, float]]) -> None:
        self.curves.add(rows)
        self.show(rows[-1])

    def notice(self) -> bool:
        return self.noticed()


def state_keys(checkpoint: Checkpoint) -> list[str]:
    prefix = artifacts.state_prefix(checkpoint.run, checkpoint.step, checkpoint.attempt)
    return [f"{prefix}/{name}" for name, _ in checkpoint.state]


def _sound(path: Path, digest: str) -> bool:
    return path.exists() and artifacts.file_digest(path) == digest
