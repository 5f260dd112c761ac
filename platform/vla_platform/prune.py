"""What nobody needs any more of runs and cells, and deleting it. Training never deletes.

Kept are the policies of all checkpoints that the recipe wants evaluated, and of the last two
checkpoints with an optimiser state both policy and state. Whatever belongs to a step after the
newest complete checkpoint is left alone: it may be on its way. What an attempt wrote whose marker
another replaced goes, too. Of a cell's rows the loose ones may go that a compacted file holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vla_platform import artifacts
from vla_platform.artifacts import COMPLETE, DESCRIPTION, WEIGHTS, Checkpoint
from vla_platform.ledger import Ledger
from vla_platform.rows import Cell
from vla_platform.store import Store
from vla_platform.store_sink import state_keys

STATES = 2
"""Optimiser states kept of a run: the last, and one more in case that is damaged."""


@dataclass(frozen=True)
class Surplus:
    """Keys to delete, in order: a marker goes before the files that it makes visible."""

    run: str
    keys: tuple[str, ...]


def runs(store: Store) -> list[str]:
    return [name.removesuffix("/") for name in store.children("policies") if name.endswith("/")]


def surplus(store: Store, run: str) -> Surplus:
    """What may go of one run."""
    found = artifacts.checkpoints(store, run)
    kept = kept_states(store, found)
    dropped = [c for c in found if not c.evaluated and c not in kept]
    keys = [*_policies(store, found, dropped), *_states(store, run, found, kept)]
    return Surplus(run, tuple(keys))


def cells(store: Store, runs: Sequence[str] | None) -> list[Cell]:
    """Those that the runs' checkpoints played, or all for None; `Ledger.prune` is for each."""
    found = Ledger(store).cells()
    if runs is None:
        return list(found)
    played = {each.digest for run in runs for each in artifacts.checkpoints(store, run)}
    return [cell for cell in found if cell.policy in played]


def kept_states(store: Store, found: list[Checkpoint]) -> list[Checkpoint]:
    """The last checkpoints that could be resumed from."""
    there = set(store.list(f"training/{found[0].run}/")) if found else set()
    whole = [c for c in found if c.state and set(state_keys(c)) <= there]
    return whole[-STATES:]


def _policies(store: Store, found: list[Checkpoint], dropped: list[Checkpoint]) -> Iterator[str]:
    """Of checkpoints to drop all files, of the others those that their markers do not name."""
    for checkpoint in found:
        marker = f"{checkpoint.prefix}/{COMPLETE}"
        needed = {marker, *map(checkpoint.key, (WEIGHTS, DESCRIPTION))}
        if checkpoint in dropped:
            yield marker
            needed = {marker}
        yield from (key for key in store.list(f"{checkpoint.prefix}/") if key not in needed)


def _states(
    store: Store, run: str, found: list[Checkpoint], kept: list[Checkpoint]
) -> Iterator[str]:
    if not kept:
        return
    needed = {key for checkpoint in kept for key in state_keys(checkpoint)}
    newest = found[-1].step
    for key in store.list(f"training/{run}/"):
        step = int(key.split("/")[2].removeprefix("step-"))
        if step <= newest and key not in needed:
            yield key


def delete(store: Store, what: Surplus) -> int:
    for key in what.keys:
        store.delete(key)
    return len(what.keys)
