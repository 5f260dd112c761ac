"""The paper's study, or some of its tables: what it would train and roll out, and the cost.

.venv/bin/python jobs/study.py --dry-run
.venv/bin/python jobs/study.py --dry-run --tables 5 figure4 --json plan.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache

from vla_platform import artifacts, cli
from vla_platform.store import Store, open_store
from vla_platform.tables import aligned

from vlm4vla import cost
from vlm4vla.study import choose
from vlm4vla.study_plan import Bill, Plan

PATIENCE_S = 10.0
"""A dry run does not wait long for a store that does not answer."""
HEADING = (
    *("", "entries", "trainings", "baselines", "steps", "GPU-hours", "episodes"),
    *("stored", "GPU-hours left"),
)


def arguments() -> cli.argparse.Namespace:
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--tables", nargs="+", metavar="NAME", help="table1 (or 1) … table10, figure3, figure4"
    )
    parser.add_argument("--dry-run", action="store_true", help="count and estimate; run nothing")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    chosen = tuple(choose(args.tables))
    if not args.dry_run:
        raise ValueError("only the dry run exists yet: add --dry-run to see what would be run.")
    store = open_store(args.store, PATIENCE_S)

    @cache
    def stored(run: str) -> Sequence[int]:
        return saved_steps(store, run)

    plan = Plan(chosen, args.seed, stored)
    if args.json:
        args.json.write_text(json.dumps(plan.as_json(), indent=1) + "\n")
    show(plan, store)
    return 0


def saved_steps(store: Store, run: str) -> Sequence[int]:
    """Complete checkpoints of a run, without the untrained one."""
    return [found.step for found in artifacts.checkpoints(store, run) if found.step]


def show(plan: Plan, store: Store) -> None:
    total, experts = plan.total(), plan.baselines()
    lines = [line(part.name, plan.bill(part), plan.baselines(part)) for part in plan.chosen]
    print(aligned([HEADING, *lines, line("together", total, experts)]))
    print(
        f"\n{total.entries} entries need a training; shared ones counted once, "
        f"{total.trainings} trainings are needed, {total.stored} of them are in {store.url}."
    )
    print(
        f"Apart: {experts.trainings} trainings of expert baselines ({experts.steps:,} steps, "
        f"{experts.gpu_hours:,.0f} GPU-hours, {experts.episodes:,} episodes); "
        f"{plan.quoted()} numbers are quoted from other authors."
    )
    print(f"Auxiliary stages to train first, not counted: {', '.join(plan.stages()) or 'none'}.")
    print(
        f"GPU-hours: 6·N·tokens at {cost.MFU:.0%} (experts {cost.MOE_MFU:.0%}) of "
        f"{cost.PEAK_FLOPS / 1e12:.0f} TFLOP/s, assumed. Episodes: every evaluated checkpoint "
        "at every horizon, without confirmation. Figures repeat entries of tables."
    )


def line(name: str, bill: Bill, experts: Bill) -> list[str]:
    counts = [bill.entries, bill.trainings, experts.entries]
    costs = [f"{bill.steps:,}", f"{bill.gpu_hours:,.0f}", f"{bill.episodes:,}"]
    return [name, *map(str, counts), *costs, str(bill.stored), f"{bill.gpu_hours_left:,.0f}"]


if __name__ == "__main__":
    cli.run(main)
