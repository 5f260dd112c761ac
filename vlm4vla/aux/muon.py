"""Muon (Jordan et al. 2024) for many small matrices on a CPU.

`torch.optim.Muon` takes matrices one by one and in bf16, for which most CPUs have no fast
product; here equal shapes are one batched product in fp32. Hyperparameters mean the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""The quintic of the Newton-Schulz iteration; `ITERATIONS` of it bring singular values near 1."""
ITERATIONS = 5
UPDATE_RMS = 0.2
"""Root mean square of an update at lr 1: AdamW's, so that their learning rates compare."""


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are orthogonalised: every direction of a matrix moves equally.

    A parameter [R, C] is one matrix, [N, R, C] a stack of them (the experts of a mixture).
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        ordered = sorted(parameters, key=_shape)
        groups = [{"params": list(same)} for _, same in itertools.groupby(ordered, _shape)]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            self._step(group)

    def _step(self, group: dict[str, Any]) -> None:
        """One shape's update; parameters without a gradient count as having a zero one."""
        parameters: list[Tensor] = group["params"]
        rows, columns = _shape(parameters[0])
        gradient = torch.cat([_gradient(p).reshape(-1, rows, columns) for p in parameters])
        state = self.state[parameters[0]]
        average = state.setdefault("average", torch.zeros_like(gradient))
        average.lerp_(gradient, 1 - group["momentum"])
        update = orthogonalised(gradient.lerp_(average, group["momentum"]))
        scale = -group["lr"] * UPDATE_RMS * max(rows, columns) ** 0.5
        parts = update.split([p.numel() // (rows * columns) for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(part.reshape(parameter.shape), alpha=scale)


def orthogonalised(matrices: Float[Tensor, "N R C"]) -> Float[Tensor, "N R C"]:
    """About U V^T of each matrix U S V^T: singular values of 0.7 to 1.2."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalised(matrices.mT).mT
    a, b, c = COEFFICIENTS
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _shape(parameter: Tensor) -> tuple[int, ...]:
    return tuple(parameter.shape[-2:])


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
