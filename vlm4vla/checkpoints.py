"""What a training keeps of itself: how it leaves the step loop, and how it comes back."""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from torch import Tensor

from vlm4vla import optimiser_state
from vlm4vla.optimiser_state import Snapshot
from vlm4vla.vlm import VisionLanguageModel

log = logging.getLogger(__name__)

Save = Callable[[Path, Mapping[str, Tensor]], None]


@dataclass(frozen=True)
class Part:
    """A worker's part of a checkpoint: the files of `folder`.

    state: name of the optimiser's file among them, None if there is none. Worker 0 also has
    the weights and their description. attempt: the same for all workers of one start of a training.
    parts: optimiser files of all workers together, 0 for a checkpoint without. evaluated: one
    that the recipe wants scored, rather than one to resume from alone.
    """

    step: int
    folder: Path
    rank: int
    state: str | None
    attempt: str
    parts: int
    evaluated: bool


class Sink(Protocol):
    """Where checkpoints and figures go, and where notices come from.

    `publish` and `commit` are called from a thread beside the step loop.
    """

    def candidates(self) -> Iterable[int]:
        """Steps of the complete checkpoints that can be resumed from, the newest first."""
        ...

    def fetch(self, step: int, state: str) -> Path:
        """A local folder with the policy's weights and at least the optimiser file `state`, all
        of them where there is none of that name. ValueError or KeyError if it is damaged."""
        ...

    def publish(self, part: Part) -> None:
        """Called by every worker with its own part; it may be deleted once this returns."""
        ...

    def commit(self, part: Part) -> None:
        """Called by worker 0: makes the checkpoint visible once every part is published."""
        ...

    def report(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Called by worker 0 with figures of consecutive steps; each has "step"."""
        ...

    def notice(self) -> bool:
        """Called by all workers together: is this machine about to be taken away? Once each."""
        ...


@dataclass(frozen=True)
class Resumed:
    """Where a training starts: a new name for this attempt, and what was there before."""

    attempt: str
    step: int = 0
    folder: Path | None = None


def find(sink: Sink, stage: int) -> Resumed:
    """The newest checkpoint that is whole on every worker; damaged ones are named and passed."""
    attempt, steps = _from_first(lambda: (uuid.uuid4().hex[:12], list(sink.candidates())))
    for step in steps:
        folder, problem = _fetched(sink, step, optimiser_state.file_name(stage))
        problems = [None] * dist.get_world_size()
        dist.all_gather_object(problems, problem)
        if folder is not None and not any(problems):
            return Resumed(attempt, step, folder)
        log.error(
            "the checkpoint of step %d cannot be used (%s): falling back to the one before",
            *(step, "; ".join(str(told) for told in problems if told)),
        )
    if steps:
        log.error("none of the checkpoints %s can be used: starting from step 0", steps)
    return Resumed(attempt)


def _fetched(sink: Sink, step: int, state: str) -> tuple[Path | None, str | None]:
    try:
        return sink.fetch(step, state), None
    except (ValueError, KeyError) as error:
        return None, f"{type(error).__name__}: {error}"


def _from_first(make: Any) -> Any:
    """What worker 0 makes, on every worker."""
    made = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(made)
    return made[0]


def copy_weights(model: VisionLanguageModel, stage: int) -> dict[str, Tensor]:
    """Every key of the model in worker 0's host memory (tied weights under all their names)."""
    from deepspeed.runtime.zero import GatheredParameters

    first, copies = dist.get_rank() == 0, {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        with GatheredParameters([tensor], enabled=stage == 3):
            if first:
                copies[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return copies


def send(
    part: Part,
    sink: Sink,
    save: Save,
    weights: Mapping[str, Tensor],
    state: Snapshot | None,
) -> None:
    """Write the copies to disk, hand them to the sink and delete them.

    save: writes the weights and their description into a folder.
    """
    part.folder.mkdir(parents=True, exist_ok=True)
    try:
        if state is not None:
            assert part.state is not None
            state.save(part.folder / part.state)
        if part.rank == 0:
            save(part.folder, weights)
        sink.publish(part)
    finally:
        shutil.rmtree(part.folder, ignore_errors=True)
    if part.rank == 0:
        sink.commit(part)
