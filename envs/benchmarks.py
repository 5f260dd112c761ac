"""Every benchmark by name. A new one is a row in its simulator's file, merged here."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Dict, Mapping, Optional

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


OFFICIAL: Dict[str, Mapping[str, Any]] = {"simpler": simpler.OFFICIAL}
"""simulator -> fields of a row that the released evaluator has otherwise."""


def evaluated(row: Benchmark, profile: str) -> Benchmark:
    """The row on which policies of a profile ("paper" or "official") are played."""
    changes = OFFICIAL.get(row.simulator) if profile == "official" else None
    if changes is None:
        return row
    args = {**row.simulator_args, **changes["simulator_args"]}
    return dataclasses.replace(row, **{**changes, "simulator_args": args})


WRONG_INSTRUCTIONS: Dict[str, Callable[[str, int], str]] = {
    "tabletop": tabletop.wrong_instruction,
    "libero": libero.wrong_instruction,
    "simpler": simpler.wrong_instruction,
}
"""simulator -> (task, initial state) -> a plausible instruction for something else."""


def wrong_instruction(row: Benchmark) -> Optional[Callable[[str, int], str]]:
    """How to name the wrong thing in this benchmark; None where it does not apply."""
    return WRONG_INSTRUCTIONS.get(row.simulator)
