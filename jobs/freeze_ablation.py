"""What does freezing the vision tower or the word embeddings cost (Tables 3 and 7)?

.venv/bin/python jobs/freeze_ablation.py
.venv/bin/python jobs/freeze_ablation.py --freeze none vision --image-px 224 336 448
make submit JOB=jobs/freeze_ablation.py ARGS="--preset cluster --store s3://…"
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ray import tune
from vla_platform import cli, study_cli

from envs.benchmarks import benchmark
from vlm4vla import laptop, science
from vlm4vla.backbones import backbone
from vlm4vla.run import FREEZE_GROUPS, Run

BACKBONES = ("qwen2.5vl-3b", "qwen2.5vl-7b", "paligemma-1")
COLUMNS = ("backbone", "freeze", "image_px", "seed")


def arguments() -> cli.argparse.Namespace:
    parser = study_cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", metavar="NAME", help="default: Table 3's")
    parser.add_argument("--benchmark", help="default: the preset's")
    parser.add_argument(
        "--freeze", nargs="+", choices=("none", *FREEZE_GROUPS), default=["none", "vision", "embed"]
    )
    parser.add_argument("--image-px", nargs="+", type=cli.positive, default=[224], metavar="PX")
    parser.add_argument("--steps", type=cli.positive, help="training steps instead of the recipe's")
    study_cli.add_running(parser)
    return parser.parse_args()


def main() -> int:
    args = arguments()
    small = args.preset == "laptop"
    chosen = args.backbones or (dict.fromkeys(map(laptop.tiny, BACKBONES)) if small else BACKBONES)
    where = args.benchmark or (laptop.BENCHMARK if small else "calvin")
    axes = {
        "backbone": [backbone(name).name for name in chosen],
        "freeze": args.freeze,
        "image_px": args.image_px,
        "seed": study_cli.seeds(args),
    }
    make = partial(run_of, benchmark(where).name, args.steps)
    study = study_cli.study(args, science)
    wanted = study_cli.search(args, "freeze", {k: tune.grid_search(v) for k, v in axes.items()})
    runs = [make(config) for config in study_cli.combinations(axes)]
    scored = study.score(runs, wanted, make)
    return study_cli.conclude(args, study, scored, len(runs), COLUMNS, science.across_trainings)


def run_of(where: str, steps: int | None, config: Mapping[str, Any]) -> Run:
    groups = () if config["freeze"] == "none" else (config["freeze"],)
    return Run(**{**config, "freeze": groups}, benchmark=where, steps=steps)


if __name__ == "__main__":
    cli.run(main)
