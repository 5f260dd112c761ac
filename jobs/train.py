"""Train one policy: a backbone on a benchmark's demonstrations, resumed where it was.

    .venv/bin/python jobs/train.py --backbone tiny-qwen3vl-2b --steps 200
    make submit JOB=jobs/train.py ARGS="--preset cluster --backbone qwen3vl-2b \
        --benchmark libero_10 --freeze vision --store s3://bucket/study"
"""

from __future__ import annotations

from dataclasses import replace

from vla_platform import artifacts, cli, curves, evaluation, session
from vla_platform.cluster import CLUSTERS
from vla_platform.contest import Rules
from vla_platform.ledger import Ledger
from vla_platform.trained import Setting, data_of, ensure_trained, trained, training_of

from envs.benchmarks import benchmark
from vlm4vla import fits, science
from vlm4vla.backbones import backbone
from vlm4vla.policies import POLICIES
from vlm4vla.run import FREEZE_GROUPS, INITS, POLICY_KINDS, PROFILES, PROMPTS, Run

CHOSEN = ("policy", "lr", "steps", "batch", "init", "prompt", "image_px", "profile", "seed")
SHOWN = ("loss", "gripper_accuracy", "samples_per_s", "data_wait_s")


def arguments() -> cli.argparse.Namespace:
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--backbone", required=True, help="a row of the backbone table")
    parser.add_argument("--benchmark", default="tabletop", help="tabletop, libero_10, calvin, …")
    cli.add_dataset(parser)
    parser.add_argument("--demonstrations", type=cli.positive, metavar="N", help="tries per task")
    parser.add_argument("--steps", type=cli.positive, help="training steps instead of the recipe's")
    parser.add_argument("--batch", type=cli.positive, help="global batch instead of the recipe's")
    parser.add_argument("--lr", type=float, help="learning rate instead of the recipe's")
    parser.add_argument("--freeze", nargs="*", choices=FREEZE_GROUPS, default=(), metavar="GROUP")
    parser.add_argument("--policy", choices=POLICY_KINDS, default="action_query")
    parser.add_argument("--init", choices=INITS, default="pretrained")
    parser.add_argument("--image-px", type=cli.positive, default=224, help="224, 512 or 768")
    parser.add_argument("--prompt", choices=PROMPTS, default="native")
    parser.add_argument("--profile", choices=PROFILES, default="paper")
    cli.add_cluster(parser)
    parser.add_argument(
        "--checkpoint-every", type=cli.positive, metavar="N", help="steps between resume points"
    )
    return parser.parse_args()


def main() -> int:
    args = arguments()
    cluster = cli.cluster_of(args)
    if args.checkpoint_every:
        cluster = replace(cluster, checkpoint_every=args.checkpoint_every)
    name, row = backbone(args.backbone).name, benchmark(args.benchmark)
    POLICIES[args.policy].check(backbone(name))
    store = cli.ready_store(args.store)
    data = data_of(store, row, row.tasks, args.demonstrations, args.dataset)
    # What an expert collects depends on the simulator; prepared demonstrations do not.
    fingerprint = "" if isinstance(data, str) else evaluation.environment(Ledger(store), row)
    rules = Rules(row.tasks, row.trials, row.horizons)
    setting = Setting(store, row, cluster, science, fingerprint, data, rules)
    chosen = {field: getattr(args, field) for field in CHOSEN}
    run = training_of(setting, Run(name, row.name, freeze=tuple(args.freeze), **chosen))
    if not trained(setting, run):
        alone = replace(cluster, gpu_share=0)  # nothing is rolled out beside it
        fits.require([name], alone, CLUSTERS, args.image_px, args.freeze)
        session.connect()
        print(f"{run.name}: training run {run.id} on {setting.dataset}", flush=True)
        ensure_trained(setting, run)
    last = (curves.read(store, run.id) or [{}])[-1]
    print(", ".join(f"{figure} {last[figure]:.4g}" for figure in SHOWN if figure in last))
    found = artifacts.checkpoints(store, run.id)
    for checkpoint in found:
        print(f"step {checkpoint.step}: {store.url}/{checkpoint.prefix} {checkpoint.digest[:12]}")
    rows = [{"run": c.run, "step": c.step, "digest": c.digest, "key": c.prefix} for c in found]
    cli.write_json(args.json, rows)
    return 0


if __name__ == "__main__":
    cli.run(main)
