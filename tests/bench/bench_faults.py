"""How many faults were injected, of which kinds, and that nothing was lost.

    PYTHONPATH=.:platform python -m tests.bench.bench_faults [--seeds 1 2] [--scenarios NAME ...]

The scenarios of test_rollout_faults.py, counted. Writes faults.json beside itself.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.vla_platform.faults import Stage, stage
from tests.vla_platform.scenarios import LIBERO, SCENARIOS, Ground, libero_ground, play, prepare

KNOWN = [*SCENARIOS, *LIBERO]
OUT = Path(__file__).with_name("faults.json")


def measure(ground: Ground, name: str, folder: Path, seed: int) -> dict[str, Any]:
    """One scenario; an AssertionError when an episode was lost, doubled or changed."""
    began = time.monotonic()
    injected = play(ground, name, folder, seed)
    row = {
        "scenario": name,
        "seed": seed,
        "injected": dict(sorted(injected.items())),
        "episodes": len(ground.undisturbed),
        "lost": 0,
        "doubled": 0,
        "changed": 0,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(f"{name:<20} seed {seed}: {row['seconds']:>6.1f} s  {row['injected']}", flush=True)
    return row


def undisturbed(make: Any, running: Stage, folder: Path) -> Ground:
    """The outcomes that every disturbed run must equal."""
    began, own = time.monotonic(), folder / f"undisturbed-{make.__name__}"
    own.mkdir()
    ground: Ground = make(running, own)
    won = sum(row["success"] for row in ground.undisturbed)
    print(
        f"{len(ground.undisturbed)} undisturbed episodes, {won} successes: "
        f"{time.monotonic() - began:.1f} s",
        flush=True,
    )
    return ground


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--scenarios", nargs="+", choices=KNOWN, default=list(KNOWN))
    parser.add_argument("--json", type=Path, default=OUT)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, stage() as running:
        grounds: dict[Any, Ground] = {}
        for scenario in options.scenarios:
            make = libero_ground if scenario in LIBERO else prepare
            if make not in grounds:
                grounds[make] = undisturbed(make, running, Path(name))
            for seed in options.seeds if scenario in SCENARIOS else options.seeds[:1]:
                folder = Path(name, f"{scenario}-{seed}".replace(" ", "-"))
                folder.mkdir()
                rows.append(measure(grounds[make], scenario, folder, seed))
    total: Counter[str] = sum((Counter(row["injected"]) for row in rows), Counter())
    report = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "faults": dict(sorted(total.items())),
        "faults_in_all": sum(total.values()),
        "episodes_in_all": sum(row["episodes"] for row in rows),
        "lost": 0,
        "doubled": 0,
        "changed": 0,
        "scenarios": rows,
    }
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{report['faults_in_all']} faults over {report['episodes_in_all']} episodes: none lost")


if __name__ == "__main__":
    main()
