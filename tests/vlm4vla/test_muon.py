"""Our batched Muon does what torch's does, matrix by matrix."""

import torch
from torch import nn

from vlm4vla.aux.muon import Muon, orthogonalised

SHAPES = ((64, 64), (64, 64), (128, 64), (32, 64))


def _steps(optimiser, parameters, gradients):
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimiser.step()


def test_agrees_with_torch_to_bf16():
    torch.manual_seed(0)
    start = [torch.randn(shape) / 8 for shape in SHAPES]
    gradients = [[torch.randn(shape) for shape in SHAPES] for _ in range(5)]
    ours, theirs = ([nn.Parameter(p.clone()) for p in start] for _ in range(2))
    _steps(Muon(ours, lr=1e-2, weight_decay=0.01), ours, gradients)
    reference = torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    _steps(reference, theirs, gradients)
    for before, mine, wanted in zip(start, ours, theirs, strict=True):
        assert (mine - wanted).norm() < 0.02 * (wanted - before).norm()


def test_a_stack_moves_as_its_matrices_do():
    torch.manual_seed(0)
    stack = nn.Parameter(torch.randn(3, 16, 8))
    single = [nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    gradient = torch.randn(3, 16, 8)
    _steps(Muon([stack], lr=0.1), [stack], [[gradient]])
    _steps(Muon(single, lr=0.1), single, [list(gradient)])
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in single]))


def test_updates_are_nearly_orthogonal():
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalised(torch.randn(4, 32, 64)))
    assert values.min() > 0.6 and values.max() < 1.3
