"""Collect demonstrations with a simulator's scripted expert, into the store.

.venv/bin/python jobs/collect_demos.py libero_object --tasks 0 1 --demonstrations 50
"""

from __future__ import annotations

from vla_platform import artifacts, cli, demos, evaluation, session
from vla_platform.demos import Demonstrations
from vla_platform.ledger import Ledger
from vla_platform.progress import Meter

from envs.benchmarks import benchmark
from vlm4vla.data.dataset import Manifest, build_manifest, encode_shard


def arguments() -> cli.argparse.Namespace:
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("benchmark", help="tabletop, libero_object, libero_spatial, …")
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="names or numbers; all if absent"
    )
    parser.add_argument("--demonstrations", type=cli.positive, help="tries per task")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    row = benchmark(args.benchmark)
    wanted = Demonstrations.of(row, row.choose_tasks(args.tasks), args.demonstrations, args.seed)
    store = cli.ready_store(args.store)
    dataset = wanted.id(row, evaluation.environment(Ledger(store), row))
    if not artifacts.dataset_exists(store, dataset):
        session.connect()
        with Meter(row.name) as meter:
            demos.collect(
                store,
                dataset,
                row,
                wanted,
                encode_shard,
                build_manifest,
                lambda tried, kept, total: meter.show(tried, total, f"{kept} succeeded"),
            )
    manifest = Manifest.from_bytes(store.get(f"datasets/{dataset}/{artifacts.MANIFEST}"))
    print(f"{manifest.episodes} episodes, {manifest.frames} frames: {manifest.source}")
    print(f"{store.url}: datasets/{dataset}")
    cli.write_json(
        args.json,
        [{"dataset": dataset, "episodes": manifest.episodes, "frames": manifest.frames}],
    )
    return 0


if __name__ == "__main__":
    cli.run(main)
