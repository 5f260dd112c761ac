"""Prepare a stage's published question-answer data: any format to shards in the store.

.venv/bin/python jobs/prepare_questions.py robopoint robopoint=/data/robopoint-data
.venv/bin/python jobs/prepare_questions.py vqa-mix vica332k=/data/vica spacer=/data/spacer …
"""

from __future__ import annotations

from pathlib import Path

from vla_platform import artifacts, cli

from envs.api import did_you_mean
from vlm4vla.aux.prepare import prepare_questions
from vlm4vla.aux.questions import Manifest
from vlm4vla.stages import STAGES


def arguments() -> cli.argparse.Namespace:
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("stage", help=", ".join(STAGES))
    parser.add_argument("folders", nargs="*", metavar="NAME=PATH", help="data of each of its rows")
    parser.add_argument(
        "--general", type=float, default=0.0, help="share of general questions mixed in"
    )
    return parser.parse_args()


def main() -> int:
    args = arguments()
    if args.stage not in STAGES:
        raise did_you_mean("stage", args.stage, STAGES)
    stage = STAGES[args.stage].with_general(args.general)
    pairs = [text.partition("=") for text in args.folders]
    folders = {name: Path(path) for name, _, path in pairs}
    store = cli.ready_store(args.store)
    if artifacts.dataset_exists(store, stage.data):
        manifest = Manifest.from_bytes(store.get(f"datasets/{stage.data}/{artifacts.MANIFEST}"))
    else:
        manifest = prepare_questions(stage, folders, artifacts.dataset_put(store, stage.data))
    for why in manifest.bad:
        print(f"left out {why}")
    for name, (trained, held_out) in manifest.counts.items():
        print(f"{name}: {trained} questions to train on, {held_out} held out")
    if manifest.drawings:
        print(f"{sum(shard.rows for shard in manifest.drawings)} scenes to draw")
    print(f"{len(manifest.bad)} rows left out; {store.url}: datasets/{stage.data}")
    cli.write_json(args.json, [{"data": stage.data, "counts": dict(manifest.counts)}])
    return 0


if __name__ == "__main__":
    cli.run(main)
