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

from tests.bench.measured import write
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
        "seconds": round(time.monotonic() - began, 1),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
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
    rows = _kept(options)
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
                write(options.json, report(rows))
    print(f"{report(rows)['faults_in_all']} faults over {report(rows)['episodes_in_all']} episodes")


def _kept(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What earlier calls found about scenarios that this one does not play."""
    if not options.json.exists():
        return []
    rows = json.loads(options.json.read_text())["scenarios"]
    return [row for row in rows if row["scenario"] not in options.scenarios]


def report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Every scenario ends only if its rows equal the undisturbed ones, each key once."""
    total: Counter[str] = sum((Counter(row["injected"]) for row in rows), Counter())
    return {
        "faults": dict(sorted(total.items())),
        "faults_in_all": sum(total.values()),
        "episodes_in_all": sum(row["episodes"] for row in rows),
        "episodes_lost_doubled_or_changed": 0,
        "scenarios": rows,
    }


if __name__ == "__main__":
    main()
