"""The optimiser's state as one safetensors file per worker, readable by any number of workers.

Whatever the ZeRO stage, torch's optimiser steps a few flat tensors of which each parameter
occupies a run of numbers. A file holds those tensors and says whose numbers lie where, so a
later group of workers, of another size or stage, picks out what it needs. Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
MASTER = "master"
"""fp32 weights behind 16-bit ones; in fp32 the policy's own weights say it all."""
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter")


@dataclass(frozen=True)
class Piece:
    """`count` numbers of parameter `name` from `start` on, at `offset` in tensor `tensor`."""

    name: str
    start: int
    count: int
    tensor: int
    offset: int


@dataclass(frozen=True)
class Snapshot:
    """A worker's optimiser state in host memory; empty where another worker holds it all."""

    tensors: dict[str, Tensor]
    about: dict[str, str]

    def save(self, path: Path) -> None:
        save_file(self.tensors, path, metadata=self.about)


def file_name(stage: int) -> str:
    """This worker's file; workers that would read the same numbers share the name."""
    if stage == 0:
        return "zero0.safetensors"
    return f"zero{stage}-rank-{dist.get_rank():05d}-of-{dist.get_world_size():05d}.safetensors"


def files(stage: int) -> int:
    """How many files make up a state."""
    return dist.get_world_size() if stage else 1


def holds_a_part(stage: int) -> bool:
    """Without ZeRO every worker has the whole state, and the first one writes it."""
    return stage > 0 or dist.get_rank() == 0


def snapshot(engine: Any) -> Snapshot:
    """A copy of this worker's state in host memory; training may go on at once."""
    base, tensors = _base(engine.optimizer), _stepped(engine)
    low = engine.fp16_enabled() or engine.bfloat16_enabled()
    kept: dict[str, Tensor] = {}
    steps = 0.0
    for index, tensor in enumerate(tensors):
        state = base.state.get(tensor, {})
        if state:
            steps = float(state["step"])
        named = {key: state[key] for key in MOMENTS if key in state}
        if low:
            named[MASTER] = tensor
        kept |= {f"{key}.{index}": _host(value) for key, value in named.items()}
    pieces = json.dumps([astuple(piece) for piece in _pieces(engine)])
    scaler = json.dumps({key: getattr(_scaler(engine), key, None) for key in SCALER})
    return Snapshot(kept, {"pieces": pieces, "steps": str(steps), "scaler": scaler})


def restore(engine: Any, paths: Sequence[Path]) -> None:
    """Fill this worker's optimiser from the files of all workers, or from its own alone.

    The model's weights must be those of the same checkpoint. ValueError when numbers are missing.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(path, "pt")) for path in sorted(paths)]
        about = opened[0].metadata()
        base, tensors = _base(engine.optimizer), _stepped(engine)
        saved = _Saved(opened)
        for tensor in tensors:
            base.state[tensor] = _blank(base, tensor, float(about["steps"]))
        for piece in _pieces(engine):
            _fill(base.state[tensors[piece.tensor]], tensors[piece.tensor], piece, saved)
    scaler = _scaler(engine)
    for key, value in json.loads(about["scaler"]).items():
        if value is not None and scaler is not None:
            setattr(scaler, key, value)


class _Saved:
    """Where every parameter's numbers lie in a set of opened files."""

    def __init__(self, opened: Iterable[Any]) -> None:
        self.where: dict[str, list[tuple[Any, Piece]]] = {}
        self.keys = {}
        for file in opened:
            self.keys[file] = set(file.keys())
            for fields in json.loads(file.metadata()["pieces"]):
                piece = Piece(*fields)
                self.where.setdefault(piece.name, []).append((file, piece))

    def read(self, wanted: Piece, key: str) -> Iterator[tuple[int, Tensor]]:
        """(offset in the wanted piece, numbers) of whatever the files have of it."""
        for file, piece in self.where.get(wanted.name, ()):
            first = max(wanted.start, piece.start)
            last = min(wanted.start + wanted.count, piece.start + piece.count)
            name = f"{key}.{piece.tensor}"
            if first < last and name in self.keys[file]:
                saved = file.get_slice(name)
                flat = saved if len(saved.get_shape()) == 1 else saved[:].flatten()
                begin = piece.offset + first - piece.start
                yield first - wanted.start, flat[begin : begin + last - first]


def _fill(state: dict[str, Any], tensor: Tensor, wanted: Piece, saved: _Saved) -> None:
    targets = {key: state[key] for key in MOMENTS}
    if tensor.dtype == torch.float32:
        targets[MASTER] = tensor
    for key, target in targets.items():
        flat, filled = target.detach().view(-1), 0
        for offset, numbers in saved.read(wanted, key):
            begin = wanted.offset + offset
            flat[begin : begin + len(numbers)].copy_(numbers)
            filled += len(numbers)
        if filled != wanted.count and key != MASTER:
            raise ValueError(
                f"the checkpoint's optimiser state has {filled} of {wanted.count} numbers of "
                f"{key} of {wanted.name}: it belongs to another model, or parts of it are missing"
            )


def _host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _base(optimizer: Any) -> Any:
    """Torch's optimiser inside whatever DeepSpeed put around it."""
    return getattr(optimizer, "optimizer", optimizer)


def _scaler(engine: Any) -> Any:
    """What holds the loss scale of fp16."""
    optimizer = engine.optimizer
    return getattr(optimizer, "loss_scaler", getattr(optimizer, "loss_scale_config", None))


def _blank(base: Any, tensor: Tensor, steps: float) -> dict[str, Any]:
    moments = {key: torch.zeros_like(tensor, requires_grad=False) for key in MOMENTS}
    if not isinstance(base, torch.optim.AdamW):
        return {"step": int(steps), **moments}
    fused = base.param_groups[0].get("fused") or base.param_groups[0].get("capturable")
    where = tensor.device if fused else "cpu"
    return {"step": torch.tensor(steps, dtype=torch.float32, device=where), **moments}


def _stepped(engine: Any) -> list[Tensor]:
    """The tensors that torch's optimiser steps, in a fixed order."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 3:
        return list(optimizer.fp32_partitioned_groups_flat)
    if stage in (1, 2):
        return list(optimizer.single_partition_of_fp32_groups)
    return [tensor for group in _base(optimizer).param_groups for tensor in group["params"]]


def _pieces(engine: Any) -> list[Piece]:
    """Whose numbers lie where in `_stepped`."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    names = {id(p): name for name, p in engine.module.named_parameters()}
    if stage == 3:
        return list(_stage_3(optimizer, names))
    if stage in (1, 2):
        return list(_stages_1_and_2(optimizer, names))
    groups = getattr(optimizer, "fp16_groups", None) or [
        g["params"] for g in optimizer.param_groups
    ]
    flat = [parameter for group in groups for parameter in group]
    return [Piece(names[id(p)], 0, p.numel(), index, 0) for index, p in enumerate(flat)]


def _stages_1_and_2(optimizer: Any, names: dict[int, str]) -> Iterator[Piece]:
    for index, group in enumerate(optimizer.bit16_groups):
        for parameter in group:
            mapped = parameter._hp_mapping
            if mapped is not None:
                own, flat = mapped.lp_fragment_address, mapped.hp_fragment_address
                yield Piece(names[id(parameter)], own.start, own.numel, index, flat.start)


def _stage_3(optimizer: Any, names: dict[int, str]) -> Iterator[Piece]:
    rank = dist.get_rank()
    for group in optimizer.fp16_groups:
        for parameter in group:
            tensor, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
            size = parameter.partition_numel()
            count = min(size, parameter.ds_numel - rank * size)
            if count > 0:  # the last worker's part may be padding alone
                yield Piece(names[id(parameter)], rank * size, count, tensor, offset)
