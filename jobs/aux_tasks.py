"""What does fine-tuning a VLM on embodied questions do to its policy (Table 10, Figure 4)?

.venv/bin/python jobs/aux_tasks.py --stages robopoint vica332k
.venv/bin/python jobs/aux_tasks.py --stages robopoint --general 0 0.36
make submit JOB=jobs/aux_tasks.py ARGS="--preset cluster --store s3://…"

A stage is trained once and starts every run that names it. Figure 4's box of a run is the
scores of its five checkpoints: `by_step` of --json.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ray import tune
from vla_platform import cli, study_cli

from envs.benchmarks import benchmark
from vlm4vla import laptop, science
from vlm4vla.run import Run
from vlm4vla.stages import STAGES, tiny_stage, variants
from vlm4vla.study import TABLES

NAMES = [name for name in STAGES if any(f"+{name}" in e.row for e in TABLES["table10"].entries())]
ASKED = [name for name, stage in STAGES.items() if not any(r.of_demonstrations for r in stage.rows)]
"""Stages of questions; those of actions learn from one benchmark alone: `action_injection.py`."""
COLUMNS = ("backbone", "aux", "seed")


def arguments() -> cli.argparse.Namespace:
    parser = study_cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="+", choices=ASKED, default=NAMES, metavar="NAME")
    parser.add_argument(
        "--general", nargs="+", type=float, default=[0.0], help="shares of general questions"
    )
    parser.add_argument("--stage-steps", type=cli.positive, help="instead of the stage's own")
    study_cli.add_running(parser)
    parser.set_defaults(error=0.0)  # a box needs the bad checkpoints too
    return parser.parse_args()


def main() -> int:
    args = arguments()
    small = args.preset == "laptop"
    rows = {name: tiny_stage(name) if small else STAGES[name] for name in args.stages}
    stages = variants(rows.values(), args.general, args.stage_steps)
    where = benchmark(laptop.BENCHMARK if small else "calvin")
    checkpoints = laptop.CHECKPOINTS if small else where.recipe.checkpoints
    starts = [(stage.backbone, stage.id) for stage in stages]
    untouched = [(name, "") for name in dict.fromkeys(row.backbone for row in rows.values())]
    axes = {"start": [*untouched, *starts], "seed": study_cli.seeds(args)}
    make = partial(run_of, where.name, checkpoints[-1])
    study = study_cli.study(args, science, stages)
    study.checkpoints = checkpoints
    wanted = study_cli.search(args, "aux", {k: tune.grid_search(v) for k, v in axes.items()})
    runs = [make(config) for config in study_cli.combinations(axes)]
    scored = study.score(runs, wanted, make)
    study_cli.show_stages(study.store, stages)
    boxes = {run: study.by_step(run) for run in scored}
    study_cli.show_boxes(boxes, COLUMNS)
    return study_cli.conclude(
        *(args, study, scored, len(runs), COLUMNS, science.across_trainings),
        more=lambda run: {"by_step": boxes[run]},
    )


def run_of(where: str, steps: int, config: Mapping[str, Any]) -> Run:
    backbone, stage = config["start"]
    return Run(backbone, where, aux=stage or None, steps=steps, seed=config["seed"])


if __name__ == "__main__":
    cli.run(main)
