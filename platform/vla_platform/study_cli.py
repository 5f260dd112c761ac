"""What the command lines of studies share: how runs are scored, searched and printed."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from ray.tune import ResultGrid

from vla_platform import cli
from vla_platform.stages import Stage, record
from vla_platform.store import Store
from vla_platform.study import Study
from vla_platform.tables import aligned, standing_text
from vla_platform.trained import Science
from vla_platform.tuning import OBJECTIVES, Search

AcrossTrainings = Callable[[Sequence[Sequence[float]]], tuple[float, float, float]]
"""Outcomes of each training's trials -> their mean rate and its interval."""
BEST = "best over checkpoints and horizons, 95%"
LAPTOP_STATES = 20
"""Initial states per task with which laptop studies choose, when nothing else is said."""


def parser(description: str) -> argparse.ArgumentParser:
    made = cli.parser(description)
    cli.add_cluster(made)
    made.add_argument("--seeds", type=cli.positive, default=1, help="trainings of each run")
    scoring = made.add_argument_group("scoring")
    scoring.add_argument("--states", type=cli.positive, help="initial states per task that choose")
    scoring.add_argument(
        "--confirm", type=int, default=20, help="fresh states per task for each winner; 0: none"
    )
    scoring.add_argument(
        "--confirm-within",
        type=float,
        metavar="POINTS",
        help="as many fresh states as the confirmed 95%% interval needs to be ± POINTS, instead",
    )
    scoring.add_argument(
        "--error",
        type=float,
        default=0.05,
        help="allowed probability of stopping the best checkpoint × horizon early; 0 plays all",
    )
    return made


def add_search(made: argparse.ArgumentParser) -> None:
    tune = made.add_argument_group("search")
    tune.add_argument("--search", choices=("grid", "optuna"), default="grid")
    tune.add_argument("--trials", type=cli.positive, default=20, help="of Optuna's search")
    tune.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=["success"])
    tune.add_argument("--asha", action="store_true", help="stop runs that fall behind")
    add_running(tune)


def add_running(made: Any) -> None:
    cli.add_dataset(made)
    made.add_argument("--concurrent", type=cli.positive, default=1, help="runs at a time")
    made.add_argument("--max-gpu-hours", type=float, help="end after so many; more continue")


def study(args: argparse.Namespace, science: Science, stages: Sequence[Stage] = ()) -> Study:
    """ValueError for flags that contradict each other. stages: that runs may start from."""
    if not 0 <= args.error < 1:
        raise ValueError(f"--error is a probability: {args.error} is not between 0 and 1")
    if args.confirm_within is not None and not 0 < args.confirm_within < 100:
        raise ValueError(f"--confirm-within is in percentage points: {args.confirm_within}")
    return Study(
        store=cli.ready_store(args.store),
        cluster=cli.cluster_of(args),
        science=science,
        say=say,
        states=args.states or (LAPTOP_STATES if args.preset == "laptop" else None),
        confirm=args.confirm,
        within=args.confirm_within and args.confirm_within / 100,
        error=args.error or None,
        stages={stage.id: stage for stage in stages},
        dataset=args.dataset,
    )


def say(line: str) -> None:
    """Print at once. Tune keeps its callbacks by pickle, which refuses `print` where Ray shows
    workers' logs: it has put its own in the place of the built-in one."""
    print(line, flush=True)  # noqa: T201


def search(args: argparse.Namespace, name: str, space: Mapping[str, Any]) -> Search:
    chosen = vars(args)
    optuna = chosen.get("search") == "optuna"
    if not optuna and len(chosen.get("objectives", ())) > 1:
        raise ValueError("several --objectives need --search optuna: a grid tries everything")
    return Search(
        name=name,
        space=space,
        samples=args.trials if optuna else 1,
        optuna=optuna,
        asha=chosen.get("asha", False),
        objectives=tuple(chosen.get("objectives", ("success",))),
        concurrent=args.concurrent,
        max_gpu_hours=args.max_gpu_hours,
        seed=args.seed,
    )


def combinations(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """What a grid search over the axes tries, in its order."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def seeds(args: argparse.Namespace) -> list[int]:
    return list(range(args.seed, args.seed + args.seeds))


def conclude(
    args: argparse.Namespace,
    study: Study,
    scored: Mapping[Any, Any],
    asked: int,
    columns: Sequence[str],
    across: AcrossTrainings,
    more: Callable[[Any], Mapping[str, Any]] = lambda run: {},
) -> int:
    """Print and write the rows of scored runs; 1 when some are missing that nobody stopped.

    more: what else a run's row is to hold.
    """
    rows = [{**study.row(run, standing), **more(run)} for run, standing in scored.items()]
    cli.write_json(args.json, rows)
    print(f"\n{_table(rows, columns)}\n")  # noqa: T201
    outcomes = [standing.outcomes for standing in scored.values()]
    print(variance(args, rows, outcomes, columns, across))  # noqa: T201
    missing = asked - len(scored)
    stopped = vars(args).get("asha", False) and study.ended >= asked
    if missing:
        why = "--asha stopped them" if stopped else "the same command continues"
        print(f"{missing} runs have no score: {why}")  # noqa: T201
    return int(missing > 0 and not stopped)


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Each row's score, and its policy as `jobs/evaluate.py --policy` takes it."""
    lines = ([*_named(row, columns), standing_text(row), row["checkpoint"]] for row in rows)
    return aligned([[*columns, BEST, "policy"], *lines])


def show_stages(store: Store, stages: Sequence[Stage]) -> None:
    """Print what each stage's metrics were before and after it, and how many rows were bad."""
    lines = [["stage", "questions", "before", "after", "asked", "left out"]]
    for stage in stages:
        told = record(store, stage.id) or {"before": {}, "after": {}}
        for name, after in told["after"].items():
            shares = [f"{each['score']:.1%}" for each in (told["before"][name], after)]
            counts = map(str, (after["asked"], len(told["left_out"])))
            lines.append([stage.name, name, *shares, *counts])
    print(f"\n{aligned(lines)}")  # noqa: T201


def show_boxes(boxes: Mapping[Any, Mapping[int, float]], columns: Sequence[str]) -> None:
    """Print how a run's score spreads over its checkpoints (Figure 4). boxes: score by step."""
    lines = [[*columns, "lowest", "median", "best", "checkpoints"]]
    for run, by_step in boxes.items():
        found = sorted(by_step.values())
        spread = [f"{100 * each:.0f}%" for each in (found[0], median(found), found[-1])]
        lines.append([*(str(getattr(run, c)) for c in columns), *spread, str(len(found))])
    print(f"\n{aligned(lines)}")  # noqa: T201


def show_search(args: argparse.Namespace, results: ResultGrid, columns: Sequence[str]) -> int:
    """Print and write what a search tried, the best first; 1 when a trial ended in an error."""
    found = [results[i] for i in range(len(results))]
    rows = [{**(each.config or {}), **each.metrics} for each in found if each.metrics]
    rows = [
        {**_plain_row(row), "checkpoint": f"{row['run']}@{row['step']}"}
        for row in rows
        if "success" in row
    ]
    rows.sort(key=lambda row: (-row["success"], row.get("gpu_hours", 0.0)))
    cli.write_json(args.json, rows)
    print(f"\n{_table(rows, columns)}\n")  # noqa: T201
    return int(bool(results.errors))


def variance(
    args: argparse.Namespace,
    rows: Sequence[Mapping[str, Any]],
    outcomes: Sequence[Sequence[float]],
    columns: Sequence[str],
    across: AcrossTrainings,
) -> str:
    """What several trainings of one run say together; else that nobody knows.

    outcomes: of each row's winner.
    """
    if args.seeds == 1:
        return "Training variance unknown: one seed a run (--seeds N trains each N times)."
    groups: dict[tuple[str, ...], list[Sequence[float]]] = {}
    for row, found in zip(rows, outcomes, strict=True):
        key = tuple(_named(row, [name for name in columns if name != "seed"]))
        groups.setdefault(key, []).append(found)
    lines = []
    for key, trainings in groups.items():
        rate, low, high = (100 * share for share in across(trainings))
        over = f"over {len(trainings)} trainings and their trials"
        lines.append(f"{' '.join(key)}: {rate:.0f}% [{low:.0f}, {high:.0f}] {over}")
    return "\n".join(lines)


def _named(row: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    return [f"{row[c]:.3g}" if isinstance(row[c], float) else str(row[c]) for c in columns]


def _plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Without what Tune adds of its own and JSON does not know."""
    return {k: v for k, v in row.items() if isinstance(v, (str, int, float)) or v is None}
