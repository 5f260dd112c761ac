"""The policy head of Table 9: a small MLP from one hidden state to a chunk of actions."""

from __future__ import annotations

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

POSE = 6
"""xyz translation and rotation deltas; the gripper has a branch of its own."""


class ActionHead(nn.Module):
    """Trunk d -> d/2 -> width, then an arm and a gripper branch (paper A.2.6, Table 9).

    width is 1024 at full size. The sizes printed in Table 9 need both branches and their
    three hidden layers; "Linear(1024, 7)" of the text would be less than half of them.
    """

    def __init__(self, hidden: int, chunk: int, width: int = 1024) -> None:
        super().__init__()
        self.chunk = chunk
        self.trunk = nn.Sequential(
            nn.Linear(hidden, hidden // 2), nn.ReLU(), nn.Linear(hidden // 2, width)
        )
        self.arm = nn.Sequential(*_branch(width, chunk * POSE), nn.Tanh())
        self.gripper = nn.Sequential(*_branch(width, chunk))
        self.apply(_xavier)

    def forward(
        self, hidden: Float[Tensor, "B D"]
    ) -> tuple[Float[Tensor, "B k 6"], Float[Tensor, "B k"]]:
        """Normalised pose deltas in [-1, 1] and gripper logits (positive: close)."""
        features = self.trunk(hidden)
        return self.arm(features).view(-1, self.chunk, POSE), self.gripper(features)


def _branch(width: int, out: int) -> list[nn.Module]:
    sizes = [width, width, width // 2, width // 4]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return [*layers, nn.Linear(sizes[-1], out)]


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
