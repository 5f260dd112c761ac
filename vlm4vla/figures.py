"""A training's figures per step, brought together from all workers about once a second.

A reduction at every step would cost short steps too much, so each worker keeps its rows and
all meet when about a second has passed by everyone's reckoning. A notice that only one worker
got (its machine is to be taken away) reaches the others by the same message.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

Row = dict[str, float]
EVERY_S = 1.0
PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}
"""FLOP/s of a GPU in 16 bits without sparsity, by a part of its name."""


class Figures:
    """Rows of figures that wait to be brought together.

    most: steps between two reductions, at most. device: where the process group reduces.
    """

    def __init__(self, most: int, device: torch.device) -> None:
        self.most, self.device = most, device
        self.rows: list[tuple[int, Row, Row]] = []
        self.until = 1

    def add(self, step: int, weight: float, weighted: Row, sums: Row) -> None:
        """One step of this worker. weighted: values × weight, to become means; sums add up."""
        self.rows.append((step, weighted, {"": weight, **sums}))

    @property
    def due(self) -> bool:
        return len(self.rows) >= self.until

    def gather(self, notice: bool, times: tuple[str, ...]) -> tuple[list[Row], bool]:
        """Rows over all workers, and whether any of them got a notice. Every worker must call.

        times: names among the sums that become means over the workers.
        """
        table = [[*means.values(), *sums.values()] for _, means, sums in self.rows]
        width = len(table[0])
        flat = torch.tensor([*table, [float(notice)] * width], dtype=torch.float64)
        flat = flat.to(self.device)
        dist.all_reduce(flat)
        *reduced, flags = flat.tolist()
        workers = dist.get_world_size()
        found = []
        for (step, means, sums), values in zip(self.rows, reduced, strict=True):
            total = dict(zip([*means, *sums], values, strict=True))
            weight = total.pop("")
            row = {name: total[name] / weight for name in means}
            added = {n: total[n] / workers if n in times else total[n] for n in sums if n}
            found.append({"step": float(step), **row, **added})
        self.rows = []
        pace = sum(row["step_s"] for row in found) / len(found)
        self.until = max(1, min(self.most, round(EVERY_S / max(pace, 1e-6))))
        return found, flags[0] > 0


def peak_flops() -> float | None:
    """Of this worker's GPU; None where there is none that we know."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)
