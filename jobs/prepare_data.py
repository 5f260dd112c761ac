"""Prepare published demonstrations for training: any format to shards in the store.

.venv/bin/python jobs/prepare_data.py calvin /data/task_ABC_D --name calvin_abc_d
.venv/bin/python jobs/prepare_data.py libero /data/libero_10 --no-noops --name libero_10_no_noops
.venv/bin/python jobs/prepare_data.py rlds /data/bridge/1.0.0 --name bridge_orig --skip-bad
"""

from __future__ import annotations

from pathlib import Path

from vla_platform import artifacts, cli, prepare, session
from vla_platform.progress import Meter
from vla_platform.store import Store

from envs.benchmarks import BENCHMARKS
from vlm4vla.data.dataset import Manifest
from vlm4vla.data.frames import ENCODINGS
from vlm4vla.data.prepare import FORMATS, GRIPPERS, Options, Preparation, open_source


def arguments() -> cli.argparse.Namespace:
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("format", help=", ".join(FORMATS))
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files or a folder")
    parser.add_argument("--name", help="by which benchmarks find it; the format if absent")
    parser.add_argument("--px", type=cli.positive, default=224, help="side of the stored frames")
    parser.add_argument("--image", choices=ENCODINGS, default="png", help="png is exact")
    parser.add_argument("--per-shard", type=cli.positive, default=16, help="episodes in a shard")
    parser.add_argument("--split", help="of calvin and rlds: training, validation, train, …")
    parser.add_argument("--camera", help="of lerobot: which feature; the first if absent")
    parser.add_argument("--layout", help="of rlds: bridge or libero; by its name if absent")
    parser.add_argument("--no-noops", action="store_true", help="of libero: drop idle steps")
    parser.add_argument("--rotate", action="store_true", help="turn frames by 180 degrees")
    parser.add_argument("--gripper", choices=GRIPPERS, default="same", help="what it means there")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad episodes out, list them")
    return parser.parse_args()


def preparation(args: cli.argparse.Namespace) -> Preparation:
    options = Options(args.split, args.camera, args.layout, args.no_noops)
    return Preparation(
        source=open_source(args.format, args.paths, options),
        name=args.name or args.format,
        origin=f"{args.format}: {', '.join(path.name for path in args.paths)}",
        px=args.px,
        image=args.image,
        per_shard=args.per_shard,
        rotate=args.rotate,
        gripper=args.gripper,
        skip_bad=args.skip_bad,
    )


def prepared(store: Store, work: Preparation) -> Manifest:
    """The manifest, made now or found in the store."""
    if artifacts.dataset_exists(store, work.id):
        found = Manifest.from_bytes(store.get(f"datasets/{work.id}/{artifacts.MANIFEST}"))
        work.accept(found.skipped)
        return found
    session.connect()
    with Meter(work.name) as meter:
        return prepare.prepare(store, work, lambda done, all_: meter.show(done, all_, "shards"))


def used_by(work: Preparation) -> str:
    """Which benchmarks train on the data by their name, or what else there is to do."""
    rows = [row for row in BENCHMARKS.values() if row.dataset]
    found = [row.name for row in rows if row.dataset == work.name]
    if found:
        return f"{', '.join(found)} trains on it"
    known = ", ".join(sorted({row.dataset for row in rows}))
    return (
        f"no benchmark trains on {work.name} of itself: pass --dataset {work.id} to jobs that "
        f"train, or prepare it again with one of their names as --name: {known}"
    )


def main() -> int:
    args = arguments()
    store, work = cli.ready_store(args.store), preparation(args)
    manifest = prepared(store, work)
    for why in manifest.skipped:
        print(f"skipped {why}")
    counts = {"episodes": manifest.episodes, "frames": manifest.frames}
    print(f"{counts['episodes']} episodes, {counts['frames']} frames: {manifest.source}")
    print(f"{store.url}: datasets/{work.id}\n{used_by(work)}")
    skipped = {"skipped": list(manifest.skipped)}
    cli.write_json(args.json, [{"dataset": work.id, **counts, **skipped}])
    return 0


if __name__ == "__main__":
    cli.run(main)
