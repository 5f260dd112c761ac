"""Delete optimiser states, resume points and loose rows that nobody needs from the store.

    .venv/bin/python jobs/prune.py            # says what would go
    .venv/bin/python jobs/prune.py --delete

Training, rollouts and reports never delete: give this job alone credentials that may, and run it
while no driver runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from vla_platform import cli, prune
from vla_platform.ledger import Ledger
from vla_platform.store import open_store


def arguments() -> cli.argparse.Namespace:
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--runs", nargs="+", metavar="ID", help="runs and their cells; all if absent"
    )
    parser.add_argument("--delete", action="store_true", help="really delete")
    return parser.parse_args()


def told(kind: str, name: str, keys: Sequence[str], done: int) -> dict[str, str | int]:
    """The result's row, printed too: the keys where nothing was deleted."""
    print(f"{kind} {name}: {len(keys)} files are surplus, {done} deleted")
    for key in () if done else keys:
        print(f"  {key}")
    return {kind: name, "surplus": len(keys), "deleted": done}


def main() -> int:
    args = arguments()
    store = open_store(args.store)
    rows = []
    for run in args.runs or prune.runs(store):
        what = prune.surplus(store, run)
        done = prune.delete(store, what) if args.delete else 0
        rows.append(told("run", run, what.keys, done))
    ledger = Ledger(store)
    for cell in prune.cells(store, args.runs):
        keys = ledger.surplus(cell)
        done = ledger.prune(cell) if args.delete and keys else 0
        rows.append(told("cell", cell.id, keys, done))
    cli.write_json(args.json, rows)
    return 0


if __name__ == "__main__":
    cli.run(main)
