"""Does a VLM that learned actions make a better policy, its vision frozen or not (Table 4)?

.venv/bin/python jobs/action_injection.py
make submit JOB=jobs/action_injection.py ARGS="--preset cluster --store s3://…"

Six cells: no stage, a stage with vision frozen and one without, each before a policy with
vision frozen and one without. Answers of the stage are actions as FAST tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ray import tune
from vla_platform import cli, study_cli

from vlm4vla import laptop, science
from vlm4vla.run import Run
from vlm4vla.stages import STAGES, TINY_STAGES, variants

NAMES = ("fast-vision-frozen", "fast-vision-unfrozen")
COLUMNS = ("backbone", "aux", "freeze", "seed")


def arguments() -> cli.argparse.Namespace:
    parser = study_cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--steps", type=cli.positive, help="policy steps instead of the recipe's")
    parser.add_argument("--stage-steps", type=cli.positive, help="instead of the stage's own")
    study_cli.add_running(parser)
    return parser.parse_args()


def main() -> int:
    args = arguments()
    small = args.preset == "laptop"
    rows = TINY_STAGES if small else STAGES
    stages = variants([rows[name] for name in NAMES], steps=args.stage_steps)
    axes = {
        "aux": ["", *(stage.id for stage in stages)],
        "freeze": ["vision", "none"],
        "seed": study_cli.seeds(args),
    }
    where = laptop.BENCHMARK if small else "simpler"
    make = partial(run_of, stages[0].backbone, where, args.steps)
    study = study_cli.study(args, science, stages)
    wanted = study_cli.search(args, "injection", {k: tune.grid_search(v) for k, v in axes.items()})
    runs = [make(config) for config in study_cli.combinations(axes)]
    scored = study.score(runs, wanted, make)
    study_cli.show_stages(study.store, stages)
    return study_cli.conclude(args, study, scored, len(runs), COLUMNS, science.across_trainings)


def run_of(backbone: str, where: str, steps: int | None, config: Mapping[str, Any]) -> Run:
    frozen = () if config["freeze"] == "none" else (config["freeze"],)
    aux, seed = config["aux"] or None, config["seed"]
    return Run(backbone, where, aux=aux, freeze=frozen, steps=steps, seed=seed)


if __name__ == "__main__":
    cli.run(main)
