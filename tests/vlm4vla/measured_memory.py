"""Run as a process of its own: a tiny model's training step, and the memory it took.

Arguments: row, batch. Prints JSON: bytes of weights, gradients and optimiser state, bytes
autograd kept, and how much the resident set's peak grew over the forward pass.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tests.vlm4vla.policy_helpers import fresh, images, targets
from vlm4vla.activations import saved_bytes


def resident(field: str) -> int:
    """Bytes resident now ("VmRSS") or at the peak since the last reset ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def bytes_of(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def measure(name: str, batch: int) -> dict[str, int]:
    torch.set_num_threads(1)
    policy = fresh(name, chunk=10)
    trained = policy.optimised_parameters()
    optimiser = torch.optim.AdamW(trained)
    texts = ["reach the red block"] * batch
    inputs, (actions, mask) = policy.prepare(images(batch), texts), targets(batch, 10)
    policy.loss(policy.prepare(images(2), texts[:2]), *targets(2, 10))[0].backward()
    optimiser.step()
    state = [t for s in optimiser.state.values() for t in s.values() if t.ndim]
    before = resident("VmRSS")
    reset_peak()
    loss, _ = policy.loss(inputs, actions, mask)
    grown = resident("VmHWM") - before
    kept = saved_bytes(lambda: policy.loss(inputs, actions, mask), list(policy.parameters()))
    return {
        "weights": bytes_of(list(policy.parameters())),
        "gradients": bytes_of([p.grad for p in trained if p.grad is not None]),
        "optimiser": bytes_of(state),
        "activations": kept,
        "resident": grown,
        "tokens": inputs["input_ids"].shape[1],
        "loss_is_finite": int(torch.isfinite(loss)),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
