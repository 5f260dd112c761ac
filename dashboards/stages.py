"""Auxiliary stages as stored: what a backbone learned first, and what that did to its answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from dashboards.archive import Archive
from dashboards.cells import BROKEN, COMPLETE, UNFINISHED


@dataclass(frozen=True)
class Answers:
    """The mean score, 0 to 1, of held-out questions of one kind, before and after the stage."""

    kind: str
    asked: int
    before: float
    after: float


@dataclass(frozen=True)
class Stage:
    """answers: () until the stage is finished. left_out: questions that could not be used."""

    id: str
    name: str
    backbone: str
    steps: int
    answers: tuple[Answers, ...] = ()
    left_out: int = 0
    status: str = COMPLETE


def read_stage(archive: Archive, name: str, record: str, described: Sequence[str]) -> Stage | None:
    """The stage under policies/<name>, None when a policy lies there.

    record: the key of its `stage.json`, "" while there is none; described: of its checkpoints.
    """
    if not (record or described):
        return None
    try:
        told = json.loads(archive.get(record or described[-1]))
        if "stage" not in told:
            return None
        fields, status = told["stage"], COMPLETE if record else UNFINISHED
        answers = tuple(
            Answers(kind, found["asked"], told["before"][kind]["score"], found["score"])
            for kind, found in told.get("after", {}).items()
        )
        plain = str(fields["name"]), str(fields["backbone"]), int(fields["steps"])
        return Stage(name, *plain, answers, len(told.get("left_out", ())), status)
    except (KeyError, TypeError, ValueError):
        return Stage(name, name, "?", 0, status=BROKEN) if record else None
