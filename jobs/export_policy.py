"""Export a trained policy as a folder that `VLM4VLA.from_pretrained` loads, with a model card.

.venv/bin/python jobs/export_policy.py RUN_ID --out policy --scores rows.json
"""

from __future__ import annotations

import json
from pathlib import Path

from vla_platform import artifacts, cli, curves
from vla_platform.store import open_store

from vlm4vla.hub import export

FIGURES = ("loss", "gripper_accuracy")


def arguments() -> cli.argparse.Namespace:
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("run", help="id of a run, as jobs/train.py and the sweeps print it")
    parser.add_argument("--step", type=int, help="its checkpoint; the last if absent")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--scores", type=Path, metavar="PATH", help="a sweep's or evaluation's --json, for the card"
    )
    return parser.parse_args()


def main() -> int:
    args = arguments()
    store = open_store(args.store)
    found = {c.step: c for c in artifacts.checkpoints(store, args.run)}
    if args.step is None and found:
        args.step = max(found)
    if args.step not in found:
        raise ValueError(
            f"{store.url} has no checkpoint {args.step} of run {args.run!r}; it has "
            f"{sorted(found) or 'none'}: train it with jobs/train.py"
        )
    checkpoint = found[args.step]
    steps = {row["step"]: row for row in curves.read(store, args.run)}
    last = steps.get(checkpoint.step, {})
    scores = json.loads(args.scores.read_text()) if args.scores else []
    own = [row for row in scores if row["policy"] == checkpoint.digest and row["trials"]]
    figures = {name: last[name] for name in FIGURES if name in last}
    export(artifacts.fetch_policy(store, checkpoint), args.out, figures, own)
    print(f"step {checkpoint.step} of {args.run} is in {args.out}")
    cli.write_json(args.json, [{"run": args.run, "step": args.step, "digest": checkpoint.digest}])
    return 0


if __name__ == "__main__":
    cli.run(main)
