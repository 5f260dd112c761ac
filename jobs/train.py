"""Train one policy: a backbone on a benchmark's demonstrations, resumed where it was.

    .venv/bin/python jobs/train.py --backbone tiny-qwen3vl-2b --steps 200
    ray job submit --working-dir . -- python jobs/train.py --preset cluster \
        --backbone qwen3vl-2b --benchmark libero_10 --freeze vision --store s3://bucket/study
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from vla_platform import artifacts, cli, curves, demos, evaluation, session, training
from vla_platform.cluster import CLUSTERS
from vla_platform.demos import Demonstrations
from vla_platform.ledger import Ledger
from vla_platform.store import Store

from envs.api import Benchmark
from envs.benchmarks import benchmark
from vlm4vla.backbones import backbone
from vlm4vla.data.dataset import build_manifest, encode_shard
from vlm4vla.engine import Engine
from vlm4vla.policy_job import make_job
from vlm4vla.run import FREEZE_GROUPS, INITS, PROFILES, PROMPTS, Run
from vlm4vla.train import train

SHOWN = ("loss", "gripper_accuracy", "samples_per_s", "data_wait_s")


def arguments() -> cli.argparse.Namespace:
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--backbone", required=True, help="a row of the backbone table")
    parser.add_argument("--benchmark", default="tabletop", help="tabletop, libero_10, calvin, …")
    parser.add_argument(
        "--dataset", metavar="ID", help="in the store; else published data, else an expert's"
    )
    parser.add_argument("--demonstrations", type=cli.positive, metavar="N", help="tries per task")
    parser.add_argument("--steps", type=cli.positive, help="training steps instead of the recipe's")
    parser.add_argument("--batch", type=cli.positive, help="global batch instead of the recipe's")
    parser.add_argument("--lr", type=float, help="learning rate instead of the recipe's")
    parser.add_argument("--freeze", nargs="*", choices=FREEZE_GROUPS, default=(), metavar="GROUP")
    parser.add_argument("--init", choices=INITS, default="pretrained")
    parser.add_argument("--prompt", choices=PROMPTS, default="native")
    parser.add_argument("--profile", choices=PROFILES, default="paper")
    parser.add_argument("--untrained", action="store_true", help="also keep the policy of step 0")
    parser.add_argument("--preset", choices=CLUSTERS, default="laptop", help="the cluster")
    parser.add_argument(
        "--workers", nargs=2, type=cli.positive, metavar=("MIN", "MAX"), help="instead of its own"
    )
    parser.add_argument(
        "--checkpoint-every", type=cli.positive, metavar="N", help="steps between resume points"
    )
    return parser.parse_args()


def main() -> int:
    args = arguments()
    cluster = CLUSTERS[args.preset]
    if args.workers:
        cluster = replace(cluster, workers=tuple(args.workers))
    if args.checkpoint_every:
        cluster = replace(cluster, checkpoint_every=args.checkpoint_every)
    name, row = backbone(args.backbone).name, benchmark(args.benchmark)
    store = cli.ready_store(args.store)
    dataset = args.dataset or _data(args, row, store)
    fields = ("lr", "steps", "batch", "init", "prompt", "profile", "seed")
    chosen = {field: getattr(args, field) for field in fields}
    chosen["dataset"] = None if dataset == row.dataset else dataset
    run = Run(name, row.name, freeze=tuple(args.freeze), **chosen).resolved(row.recipe)
    found = artifacts.checkpoints(store, run.id(row))
    if not found or found[-1].step < run.steps:
        session.connect()
        job = partial(make_job, run, row, Engine(**cluster.engine()), args.untrained)
        found = training.fit(train, job, run.id(row), dataset, store, cluster, name, run.steps)
    last = (curves.read(store, run.id(row)) or [{}])[-1]
    print(", ".join(f"{figure} {last[figure]:.4g}" for figure in SHOWN if figure in last))
    for checkpoint in found:
        print(f"step {checkpoint.step}: {store.url}/{checkpoint.prefix} {checkpoint.digest[:12]}")
    rows = [{"run": c.run, "step": c.step, "digest": c.digest, "key": c.prefix} for c in found]
    cli.write_json(args.json, rows)
    return 0


def _data(args: cli.argparse.Namespace, row: Benchmark, store: Store) -> str:
    """The benchmark's published data where it is prepared, else an expert's demonstrations."""
    if artifacts.dataset_exists(store, row.dataset):
        return row.dataset
    wanted = Demonstrations.of(row, row.tasks, args.demonstrations)
    dataset = wanted.id(row, evaluation.environment(Ledger(store), row))
    if not artifacts.dataset_exists(store, dataset):
        session.connect()
        print(f"{row.name}: collecting demonstrations {dataset}", flush=True)
        encode, finish = encode_shard, build_manifest
        demos.collect(store, dataset, row, wanted, encode, finish, lambda *_: None)
    return dataset


if __name__ == "__main__":
    cli.run(main)
