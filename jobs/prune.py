"""Delete the optimiser states and resume points that nobody needs any more from the store.

    .venv/bin/python jobs/prune.py            # says what would go
    .venv/bin/python jobs/prune.py --delete

Training, rollouts and reports never delete: give this job alone credentials that may.
"""

from __future__ import annotations

from vla_platform import cli, prune
from vla_platform.store import open_store


def arguments() -> cli.argparse.Namespace:
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="+", metavar="ID", help="some runs; all if absent")
    parser.add_argument("--delete", action="store_true", help="really delete")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    store = open_store(args.store)
    rows = []
    for run in args.runs or prune.runs(store):
        what = prune.surplus(store, run)
        done = prune.delete(store, what) if args.delete else 0
        rows.append({"run": run, "surplus": len(what.keys), "deleted": done})
        print(f"{run}: {len(what.keys)} files are surplus, {done} deleted")
        for key in () if args.delete else what.keys:
            print(f"  {key}")
    cli.write_json(args.json, rows)
    return 0


if __name__ == "__main__":
    cli.run(main)
