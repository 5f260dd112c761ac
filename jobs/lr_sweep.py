"""Which learning rate suits which backbone (Table 5)? A grid, or Optuna between its ends.

    .venv/bin/python jobs/lr_sweep.py
    .venv/bin/python jobs/lr_sweep.py --search optuna --trials 20 --asha
    make submit JOB=jobs/lr_sweep.py ARGS="--preset cluster --store s3://…"

Every run is scored by rollouts of its checkpoints as they land, never by its loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ray import tune
from vla_platform import cli, study_cli
from vla_platform.cluster import CLUSTERS

from envs.benchmarks import benchmark
from vlm4vla import fits, laptop, science
from vlm4vla.backbones import backbone
from vlm4vla.run import Run

LRS = (1e-5, 2e-5, 5e-5, 1e-4)
BACKBONES = ("qwen2.5vl-3b", "qwen2.5vl-7b", "paligemma-1")


def arguments() -> cli.argparse.Namespace:
    parser = study_cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", metavar="NAME", help="default: Table 5's")
    parser.add_argument("--benchmark", help="default: the preset's")
    parser.add_argument("--lrs", nargs="+", type=float, metavar="LR", help="default: Table 5's")
    parser.add_argument("--steps", type=cli.positive, help="training steps instead of the recipe's")
    study_cli.add_search(parser)
    return parser.parse_args()


def main() -> int:
    args = arguments()
    small = args.preset == "laptop"
    chosen = args.backbones or (dict.fromkeys(map(laptop.tiny, BACKBONES)) if small else BACKBONES)
    names = [backbone(name).name for name in chosen]
    where = benchmark(args.benchmark or (laptop.BENCHMARK if small else "calvin")).name
    lrs = args.lrs or [laptop.scaled(lr) if small else lr for lr in LRS]
    study = study_cli.study(args, science)
    make = partial(run_of, where, args.steps)
    columns = ("backbone", "lr", "seed")
    if args.search == "optuna":
        space = {"backbone": tune.choice(names), "lr": tune.loguniform(min(lrs), max(lrs))}
        wanted = study_cli.search(args, "lr", {**space, "seed": args.seed})
        fits.require(names, study.cluster, CLUSTERS)
        some = [make({"backbone": name, "lr": lrs[0], "seed": args.seed}) for name in names]
        return study_cli.show_search(args, study.search(wanted, make, some), columns)
    axes = {"backbone": names, "lr": lrs, "seed": study_cli.seeds(args)}
    wanted = study_cli.search(args, "lr", {k: tune.grid_search(v) for k, v in axes.items()})
    runs = [make(config) for config in study_cli.combinations(axes)]
    scored = study.score(runs, wanted, make)
    return study_cli.conclude(args, study, scored, len(runs), columns, science.across_trainings)


def run_of(where: str, steps: int | None, config: Mapping[str, Any]) -> Run:
    return Run(**config, benchmark=where, steps=steps)


if __name__ == "__main__":
    cli.run(main)
