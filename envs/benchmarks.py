"""Every benchmark by name. A new one is a row in its simulator's file, merged here."""

from __future__ import annotations

from typing import Callable, Dict, Optional

from envs import calvin, libero, simpler, tabletop
from envs.api import Benchmark, did_you_mean

BENCHMARKS: Dict[str, Benchmark] = {
    **tabletop.BENCHMARKS,
    **libero.BENCHMARKS,
    **calvin.BENCHMARKS,
    **simpler.BENCHMARKS,
}


def benchmark(name: str) -> Benchmark:
    """The row of a benchmark; ValueError with the closest name for an unknown one."""
    if name not in BENCHMARKS:
        raise did_you_mean("benchmark", name, BENCHMARKS)
    return BENCHMARKS[name]


WRONG_INSTRUCTIONS: Dict[str, Callable[[str, int], str]] = {
    "tabletop": tabletop.wrong_instruction,
    "libero": libero.wrong_instruction,
    "simpler": simpler.wrong_instruction,
}
"""simulator -> (task, initial state) -> a plausible instruction for something else."""


def wrong_instruction(row: Benchmark) -> Optional[Callable[[str, int], str]]:
    """How to name the wrong thing in this benchmark; None where it does not apply."""
    return WRONG_INSTRUCTIONS.get(row.simulator)
