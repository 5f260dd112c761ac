"""What the rollout engine costs: beside no platform, beside a peer, and its control plane alone.

    make bench-rollouts [QUICK=1]

(a) real LIBERO: the pool beside a bare loop and beside the peer vla-eval. (b) the control plane
with simulated environments and a real SeaweedFS. (c) ledger and scheduling as episodes grow.
(d) what bit-identical batches cost. Writes rollouts.json beside itself. Needs a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from envs.process import SimulatorMissing
from tests.bench import (
    bench_control_plane,
    bench_ledger,
    bench_rollouts_invariance,
    bench_rollouts_libero,
    bench_rollouts_scheduling,
)
from tests.bench.bench_rollouts_libero import PROCESSES, WHOLE_TURNS, Size
from tests.bench.measured import ran, write

OUT = Path(__file__).with_name("rollouts.json")
QUICK = Size(trials=WHOLE_TURNS, rounds=1, peer_trials=PROCESSES, horizons=(8,))
FULL = Size()


def libero(quick: bool) -> dict[str, Any]:
    try:
        return bench_rollouts_libero.bench(QUICK if quick else FULL)
    except SimulatorMissing as missing:
        print(f"(a) left out: {missing}", flush=True)
        return {"missing": str(missing)}


def control_plane(quick: bool) -> dict[str, Any]:
    counts = [250] if quick else [250, 300, 350, 400, 450, 500]
    table = bench_control_plane.bench(counts, hosts=2, rounds=1 if quick else 2)
    return {"control_plane": table[0]["ratio"], "environments": table}


def ledger(quick: bool) -> dict[str, Any]:
    """Cost per episode of commits and of the driver, and starting again, as a study grows."""
    sizes = (1_000, 10_000) if quick else (1_000, 10_000, 100_000)
    found = bench_ledger.bench(sizes)
    return {**found, "scheduling": bench_rollouts_scheduling.bench(sizes)}


def invariance(quick: bool) -> dict[str, Any]:
    return {"families": bench_rollouts_invariance.bench(rounds=1 if quick else 9)}


PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "libero": libero,
    "control_plane": control_plane,
    "ledger": ledger,
    "invariance": invariance,
}
RATIOS = ("to_limit", "to_peer", "to_peer_two_views", "control_plane")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under five minutes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, default=OUT)
    options = parser.parse_args()
    known = json.loads(options.json.read_text()) if options.json.exists() else {}
    if set(options.parts) == set(PARTS):
        known = {}  # never figures of two runs under one date
    for name in options.parts:
        began = time.monotonic()
        found = PARTS[name](options.quick)
        known |= {ratio: found[ratio] for ratio in RATIOS if ratio in found}
        known[f"{name}_figures"] = {
            **found,
            "quick": options.quick,
            "took_s": round(time.monotonic() - began),
            "machine": ran(),
        }
    write(options.json, known)
    print("\n".join(f"{ratio:<18} {known.get(ratio, float('nan')):.3f}" for ratio in RATIOS))


if __name__ == "__main__":
    main()
