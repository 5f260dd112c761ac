"""Which backbone makes the best policy? Trains each, rolls it out, prints the table.

    .venv/bin/python jobs/backbone_sweep.py --preset laptop
    make submit JOB=jobs/backbone_sweep.py ARGS="--preset cluster --store s3://…"

Every stage looks in the store first: run it again to continue, or to read the table.
"""

from __future__ import annotations

import itertools
import time
from functools import partial

from vla_platform import cli
from vla_platform.cluster import CLUSTERS, Cluster
from vla_platform.spread import spread_lines
from vla_platform.sweep import Sweep, Trials
from vla_platform.tables import policies, rows_of, score_table
from vla_platform.trained import data_of, trained, training_of

from envs.benchmarks import benchmark, wrong_instruction
from vlm4vla import fits, science
from vlm4vla.backbones import backbone, full_rows
from vlm4vla.policies import POLICIES
from vlm4vla.run import POLICY_KINDS, Run

TINY = ("tiny-qwen3vl-2b", "tiny-paligemma-1", "tiny-kosmos-2")


def arguments() -> cli.argparse.Namespace:
    parser = cli.parser(__doc__.splitlines()[0])
    cli.add_cluster(parser)
    parser.add_argument("--benchmark", help="tabletop, libero_object, … (default: the preset's)")
    parser.add_argument(
        "--backbones", nargs="+", metavar="NAME", help="default: three tiny ones, or all that fit"
    )
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
    small, cluster = args.preset == "laptop", cli.cluster_of(args)
    row = benchmark(args.benchmark or ("tabletop" if small else "libero_10"))
    tasks = row.choose_tasks(args.tasks)
    names = backbones(args, cluster)
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
        pairs = zip(runs, trainings, strict=True)
        left = [run.backbone for run, training in pairs if not trained(setting, training)]
        fits.require(left, cluster, CLUSTERS)
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
    print(policies(report.results))
    for key in report.videos:
        print(f"video: {key}")
    for name, why in report.failed.items():
        print(f"{name}: not trained, the same command tries again: {why}")
    return 1 if report.errors or report.failed else 0


def backbones(args: cli.argparse.Namespace, cluster: Cluster) -> list[str]:
    """Those asked for; else three tiny ones, or the paper's without those that do not fit."""
    if args.backbones or args.preset == "laptop":
        return [backbone(name).name for name in args.backbones or TINY]
    paper = [row.name for row in full_rows()]
    chosen = fits.that_fit(paper, cluster)
    if not chosen:
        fits.require(paper, cluster, CLUSTERS)
    left_out = [name for name in paper if name not in chosen]
    if left_out:
        print(f"left out, too large for this preset's GPUs: {', '.join(left_out)}", flush=True)
    return chosen


def run_of(args: cli.argparse.Namespace, benchmark: str, name: str, kind: str) -> Run:
    chosen = {field: getattr(args, field) for field in ("init", "lr", "steps", "batch", "seed")}
    return Run(name, benchmark, policy=kind, **chosen)


if __name__ == "__main__":
    cli.run(main)
