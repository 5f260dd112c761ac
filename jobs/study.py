"""The paper's study of VLMs, or some of its tables: runs what is missing, prints the tables.

    .venv/bin/python jobs/study.py --dry-run
    .venv/bin/python jobs/study.py --tables 1 5
    make submit JOB=jobs/study.py ARGS="--preset 4x8-a100 --store s3://…"

Entries that tables share are trained once; the same command continues after anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from typing import Any

from ray import tune
from vla_platform import artifacts, cli, needs, study_cli
from vla_platform.store import Store, open_store
from vla_platform.study import Study
from vla_platform.tables import aligned, standing_text

from envs.api import Benchmark
from envs.benchmarks import benchmark
from envs.worker import has_expert
from vlm4vla import cost, fits, laptop, science
from vlm4vla.run import Run
from vlm4vla.stages import stage_of
from vlm4vla.study import Entry, Figure, Table, choose, on
from vlm4vla.study_plan import Bill, Plan

PATIENCE_S = 10.0
"""A dry run does not wait long for a store that does not answer."""
HEADING = (
    *("", "entries", "trainings", "baselines", "steps", "GPU-hours", "episodes"),
    *("stored", "GPU-hours left"),
)


def arguments() -> cli.argparse.Namespace:
    parser = study_cli.parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--tables", nargs="+", metavar="NAME", help="table1 (or 1) … table10, figure3, figure4"
    )
    parser.add_argument(
        "--benchmarks", nargs="+", metavar="NAME", default=[], help="entries on these alone"
    )
    parser.add_argument("--dry-run", action="store_true", help="count and estimate; run nothing")
    study_cli.add_running(parser)
    return parser.parse_args()


def main() -> int:
    args = arguments()
    args.benchmarks = [benchmark(name).name for name in args.benchmarks]
    chosen = tuple(choose(args.tables))
    return dry_run(args, chosen) if args.dry_run else run(args, chosen)


def run(args: cli.argparse.Namespace, chosen: Sequence[Table | Figure]) -> int:
    small = args.preset == "laptop"
    wanted = runs_of(args, chosen, small)
    if not wanted:
        raise ValueError(f"nothing in these tables is on {', '.join(args.benchmarks)}")
    study = study_cli.study(args, science)
    asked = list(dict.fromkeys(wanted.values()))
    runs = without_too_large(study, asked)
    if args.concurrent > 1:  # a long run that begins last leaves the others' places empty
        runs.sort(key=cost.gpu_hours, reverse=True)
    space = {"run": tune.grid_search([asdict(each) for each in runs])}
    names = "-".join(part.name for part in chosen) if args.tables else "study"
    scored = study.score(runs, study_cli.search(args, names, space), from_config)
    rows = {e: study.row(made, scored[made]) for e, made in wanted.items() if made in scored}
    places = [{"table": e.table, "row": e.row, "column": e.column} for e in rows]
    cli.write_json(args.json, [a | b for a, b in zip(places, rows.values(), strict=True)])
    show_tables(wanted, rows, small)
    missing = len(asked) - len(scored)
    if missing:
        print(f"{missing} runs have no score; the same command continues")
    return int(missing > 0)


def runs_of(
    args: cli.argparse.Namespace, chosen: Sequence[Table | Figure], small: bool
) -> dict[Entry, Run]:
    """The run of each entry that has one; small: its tiny counterpart."""
    return {
        entry: laptop.shrink(entry.run, entry.table) if small else entry.run
        for entry in on(args.benchmarks, entries(chosen, study_cli.seeds(args)))
        if entry.run is not None
    }


def without_too_large(study: Study, runs: Sequence[Run]) -> list[Run]:
    """Those that the GPUs hold while they train, or that the store has: the rest is told."""
    names = list(dict.fromkeys(run.backbone for run in runs))
    large = set(names) - set(fits.that_fit(names, study.cluster))
    if not large:
        return list(runs)
    stored = study.standings(runs)
    kept = [run for run in runs if run.backbone not in large or stored[run]]
    if len(kept) < len(runs):
        print(f"left out, too large for this preset's GPUs: {', '.join(sorted(large))}")
    return kept


def from_config(config: Mapping[str, Any]) -> Run:
    return Run(**{**config["run"], "freeze": tuple(config["run"]["freeze"])})


def entries(chosen: Sequence[Table | Figure], seeds: Sequence[int]) -> list[Entry]:
    """Of tables and of those that figures show, each once."""
    found = (entry for seed in seeds for part in chosen for entry in part.entries(seed))
    return list(dict.fromkeys(found))


def show_tables(
    wanted: Mapping[Entry, Run], rows: Mapping[Entry, Mapping[str, Any]], small: bool
) -> None:
    """rows: of the entries that have a score."""
    for name in dict.fromkeys(entry.table for entry in wanted):
        cut = any(made.steps != e.run.steps for e, made in wanted.items() if e.table == name)
        shape = " (shape only)" if small and cut else ""
        lines = [["row", "column", "seed", study_cli.BEST, "in the paper", "policy"]]
        lines += [cells(e, made.seed, rows.get(e)) for e, made in wanted.items() if e.table == name]
        print(f"\n{name}{shape}\n{aligned(lines)}")


def cells(entry: Entry, seed: int, row: Mapping[str, Any] | None) -> list[str]:
    printed = "–" if entry.printed is None else str(entry.printed)
    best, policy = (standing_text(row), row["checkpoint"]) if row else ("not scored", "")
    return [entry.row, entry.column, str(seed), best, printed, policy]


def dry_run(args: cli.argparse.Namespace, chosen: tuple[Table | Figure, ...]) -> int:
    store = open_store(args.store, PATIENCE_S)

    @cache
    def stored(run: str) -> Sequence[int]:
        return saved_steps(store, run)

    @cache
    def data(name: str) -> str | None:
        return args.dataset or there(store, benchmark(name))

    plan = Plan(chosen, study_cli.seeds(args), stored, args.benchmarks, data)
    runs = runs_of(args, chosen, small=False).values()
    starts = [(run.benchmark, stage_of(run.aux) if run.aux else None) for run in runs]
    missing = needs.lacking(store, starts, args.dataset)
    cli.write_json(args.json, {**plan.as_json(), "missing": missing})
    show(plan, store)
    if missing:
        print("\n  ".join(["Data to prepare first:", *missing]))
    if args.preset == "laptop":
        tiny = set(runs_of(args, chosen, small=True).values())
        steps = sum(run.steps or benchmark(run.benchmark).recipe.steps for run in tiny)
        print(
            "Other presets run that. The laptop's, without --dry-run, is its tiny counterpart on "
            f"{', '.join(sorted({run.benchmark for run in tiny}))}: {len(tiny)} runs, {steps:,} "
            "steps."
        )
    return 0


def there(store: Store, row: Benchmark) -> str | None:
    """Id of the data in the store that a benchmark is trained on; None where that is not plain.

    An expert's carry the benchmark's name; which of several it is, its simulator alone could say.
    """
    published = artifacts.published_dataset(store, row.dataset)
    if published or not has_expert(row.simulator):
        return published
    with suppress(ValueError):
        return artifacts.published_dataset(store, row.name)
    return None


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
        f"{plan.quoted()} numbers are quoted from other authors. jobs/backbone_sweep.py trains "
        "those, with --policies and --repeats; this job does not."
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
