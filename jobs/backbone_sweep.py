"""Which backbone makes the best policy? Trains each, rolls it out, prints the table.

    .venv/bin/python jobs/backbone_sweep.py --preset laptop
    ray job submit --working-dir . -- python jobs/backbone_sweep.py --benchmark libero_object

Every stage looks in the store first: run it again to continue, or to read the table.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from functools import partial

from vla_platform import cli
from vla_platform.cluster import CLUSTERS
from vla_platform.spread import spread_lines
from vla_platform.sweep import Sweep, Trials
from vla_platform.tables import rows_of, score_table
from vla_platform.trained import data_of, training_of

from envs.benchmarks import benchmark, wrong_instruction
from vlm4vla import science
from vlm4vla.backbones import backbone, full_rows
from vlm4vla.policies import POLICIES
from vlm4vla.run import POLICY_KINDS, Run


@dataclass(frozen=True)
class Preset:
    """Defaults of one scale; any flag overrides its part."""

    backbones: tuple[str, ...]
    benchmark: str


PRESETS = {
    "laptop": Preset(("tiny-qwen3vl-2b", "tiny-paligemma-1", "tiny-kosmos-2"), "tabletop"),
    "cluster": Preset(tuple(row.name for row in full_rows()), "libero_10"),
}


def arguments() -> cli.argparse.Namespace:
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="laptop", help="the scale")
    parser.add_argument("--benchmark", help="tabletop, libero_object, … (default: the preset's)")
    parser.add_argument("--backbones", nargs="+", metavar="NAME", help="rows of the backbone table")
    parser.add_argument(
        "--policies", nargs="+", choices=POLICY_KINDS, default=["action_query"], help="policy kinds"
    )
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="some of the benchmark's tasks")
    parser.add_argument("--trials", type=cli.positive, help="initial states per task")
    parser.add_argument(
        "--repeats", type=cli.positive, default=1, help="episodes of each initial state (pi0)"
    )
    parser.add_argument("--horizon", type=int, help="actions executed of each predicted chunk")
    parser.add_argument("--steps", type=cli.positive, help="training steps instead of the recipe's")
    parser.add_argument("--batch", type=cli.positive, help="global batch instead of the recipe's")
    parser.add_argument("--lr", type=float, help="learning rate instead of the recipe's")
    parser.add_argument("--init", choices=("pretrained", "scratch"), default="pretrained")
    cli.add_dataset(parser)
    parser.add_argument(
        "--demonstrations", type=cli.positive, metavar="N", help="expert episodes per task"
    )
    parser.add_argument("--videos", type=int, default=0, metavar="N", help="mp4s per task, outcome")
    return parser.parse_args()


def main() -> int:
    args, began = arguments(), time.monotonic()
    preset, cluster = PRESETS[args.preset], CLUSTERS[args.preset]
    row = benchmark(args.benchmark or preset.benchmark)
    tasks = row.choose_tasks(args.tasks)
    names = [backbone(name).name for name in args.backbones or preset.backbones]
    for name, kind in itertools.product(names, args.policies):
        POLICIES[kind].check(backbone(name))
    horizon = row.choose_horizon(args.horizon)
    store = cli.ready_store(args.store)
    data = data_of(store, row, tasks, args.demonstrations, args.dataset)
    trials = Trials(
        tasks,
        args.trials or row.trials,
        horizon,
        wrong_instruction(row),
        args.videos,
        args.repeats,
    )
    with Sweep(store, row, cluster, science, partial(print, flush=True)) as sweep:
        setting = sweep.setting(data, trials)
        chosen = itertools.product(names, args.policies)
        runs = [run_of(args, row.name, name, kind) for name, kind in chosen]
        trainings = [training_of(setting, run) for run in runs]
        report = sweep.run(trainings, setting, trials)
    rows = rows_of(sweep.ledger, report.results, science.wilson)
    cli.write_json(args.json, rows)
    print(
        f"\nSuccess with 95% Wilson intervals, executing {trials.horizon} of {row.chunk} actions\n"
    )
    print(score_table(rows))
    for line in spread_lines(sweep.ledger, report.results):
        print(line)
    print(f"\n{time.monotonic() - began:.0f} s in all: {report.costs()}")
    print(f"Everything lies in {store.url}: datasets/{report.dataset}, policies/, cells/")
    for key in report.videos:
        print(f"video: {key}")
    return 1 if report.errors else 0


def run_of(args: cli.argparse.Namespace, benchmark: str, name: str, kind: str) -> Run:
    chosen = {field: getattr(args, field) for field in ("init", "lr", "steps", "batch", "seed")}
    return Run(name, benchmark, policy=kind, **chosen)


if __name__ == "__main__":
    cli.run(main)
