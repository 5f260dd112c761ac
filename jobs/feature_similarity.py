"""Do a policy's features leave those of its VLM while it is trained (Figure 5)?

.venv/bin/python jobs/feature_similarity.py
.venv/bin/python jobs/feature_similarity.py --runs RUN --frames 512 --json similarity.json

Linear CKA of every layer, at every checkpoint in the store, with the backbone as published and
with each auxiliary stage of it. What was measured over as many frames is not measured again; the
report draws what was measured last.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from vla_platform import cli, session, similarity
from vla_platform.cluster import CLUSTERS

from vlm4vla.similarity import PARTS, compare


def arguments() -> cli.argparse.Namespace:
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="+", metavar="RUN", help="default: all with 2 checkpoints")
    parser.add_argument("--frames", type=cli.positive, default=256, help="scenes that are shown")
    parser.add_argument("--preset", choices=CLUSTERS, default="laptop", help="the cluster's scale")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    store = cli.ready_store(args.store)
    session.connect()
    found = []
    for run in args.runs or similarity.runs(store):
        rows = similarity.ensure(store, CLUSTERS[args.preset], compare, run, args.frames)
        show(run, rows)
        found += rows
    cli.write_json(args.json, found)
    return 0


def show(run: str, rows: Sequence[similarity.Row]) -> None:
    """The mean over each part's layers, and what a random model reaches."""
    for reference in dict.fromkeys(row["reference"] for row in rows):
        print(f"\n{run} beside {reference}: mean linear CKA of the layers (random model)")
        mine = [row for row in rows if row["reference"] == reference]
        for step in sorted({row["step"] for row in mine}):
            texts = [part_of(row for row in mine if row["step"] == step and row["part"] == part)
                     for part in PARTS]  # fmt: skip
            print(f"  step {step:>6}  vision {texts[0]}  language {texts[1]}")


def part_of(rows: Sequence[similarity.Row]) -> str:
    values = [(row["similarity"], row["floor"]) for row in rows]
    return "{:.3f} ({:.3f})".format(*map(mean, zip(*values, strict=True)))


if __name__ == "__main__":
    cli.run(main)
