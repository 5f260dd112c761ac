"""How good is a policy? Plays any checkpoint or policy server, and prints its scores.

    .venv/bin/python jobs/evaluate.py --policy RUN --horizons 4 2 1
    .venv/bin/python jobs/evaluate.py --policy exported/ ws://gpu:8000 --benchmark libero_object

A policy is a run of the store (RUN, RUN@1200, RUN@all), an exported folder, hf:ORG/NAME,
ws://HOST:PORT, or a file that the paper's authors released (then say its --backbone). Only
what is missing is played; a server's episodes are found again under --evaluation NAME alone,
because what it declares need not change with its weights.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path

from vla_platform import cli, places
from vla_platform.adapters import ADAPTERS
from vla_platform.candidates import Served, candidates
from vla_platform.cluster import CLUSTERS
from vla_platform.evaluation import OWN, WRONG_WORD
from vla_platform.scoring import Plan, Scoring
from vla_platform.spread import spread_lines
from vla_platform.tables import rows_of, score_table

from envs.benchmarks import benchmark
from vlm4vla.analysis import wilson

MODES = {"own": OWN, "wrong": WRONG_WORD}


def arguments() -> cli.argparse.Namespace:
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--policy", nargs="+", required=True, metavar="NAME",
        help="RUN, RUN@STEP or RUN@all of the store, an exported FOLDER, hf:ORG/NAME, "
        "ws://HOST:PORT, or a file that the authors released",
    )  # fmt: skip
    parser.add_argument("--benchmark", nargs="+", metavar="NAME", help="default: the policy's own")
    parser.add_argument("--horizons", nargs="+", type=int, metavar="K", help="default: half")
    parser.add_argument("--instruction", choices=MODES, default="own", help="wrong: the control")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="some of the benchmark's tasks")
    parser.add_argument("--trials", type=cli.positive, help="initial states per task")
    parser.add_argument(
        "--repeats", type=cli.positive, default=1, help="episodes of each initial state (pi0)"
    )
    parser.add_argument("--first", type=int, default=0, metavar="N", help="first initial state")
    parser.add_argument(
        "--videos", type=int, nargs="?", const=1, default=0, metavar="N",
        help="mp4s of the first N successes and failures of each task (1 without a number)",
    )  # fmt: skip
    parser.add_argument("--preset", choices=CLUSTERS, default="laptop", help="the cluster's scale")
    released = parser.add_argument_group("the authors' released files")
    released.add_argument(
        "--backbone", metavar="NAME", help="the backbone of a released file; say --benchmark too"
    )
    released.add_argument("--statistics", type=Path, help="JSON of its training data's actions")
    server = parser.add_argument_group("policy servers")
    server.add_argument(
        "--adapter", choices=ADAPTERS, default="observation", metavar="HOW",
        help="how to ask: " + "; ".join(f"{name}: {how.about}" for name, how in ADAPTERS.items()),
    )  # fmt: skip
    server.add_argument("--actions", default="", metavar="BENCHMARK", help="whose units it answers")
    server.add_argument("--evaluation", default="", metavar="NAME", help="continue this evaluation")
    return parser.parse_args()


def main() -> int:
    args, began = arguments(), time.monotonic()
    store = cli.ready_store(args.store)
    served = Served(args.evaluation or uuid.uuid4().hex[:12], args.adapter, args.actions)
    names = [unpacked(name, args) for name in args.policy]
    found = [c for name in names for c in candidates(name, args.benchmark, store, served)]
    plan = Plan(
        args.horizons,
        MODES[args.instruction],
        args.tasks,
        args.trials,
        args.first,
        args.videos,
        args.repeats,
    )
    with Scoring(store, CLUSTERS[args.preset], "vlm4vla.export:load_policy", print) as scoring:
        report = scoring.run(found, plan)
    rows = rows_of(scoring.ledger, report.results, wilson)
    cli.write_json(args.json, rows)
    print("\nSuccess with 95% Wilson intervals")
    print("\n" + score_table(rows))
    for line in spread_lines(scoring.ledger, report.results):
        print(line)
    print(f"\n{time.monotonic() - began:.0f} s in all: {report.costs()}")
    if any(candidate.policy.digest.startswith("remote-") for candidate in found):
        print(f"Servers were asked as --evaluation {served.evaluation}")
    for key in report.videos:
        print(f"video: {key}")
    return 1 if report.errors else 0


def unpacked(name: str, args: cli.argparse.Namespace) -> str:
    """A released file as a policy's folder; any other name as it is."""
    if not (args.backbone and Path(name).is_file()):
        return name
    from vlm4vla.released import released_policy  # torch: only for such a file

    if len(args.benchmark or ()) != 1:
        raise ValueError(f"{name}: say with --benchmark NAME, one, whose actions this file answers")
    [benchmark_name] = args.benchmark
    folder = places.cache() / "released" / f"{Path(name).stem}-{args.backbone}-{benchmark_name}"
    released_policy(args.backbone, benchmark(benchmark_name), Path(name), folder, args.statistics)
    return str(folder)


if __name__ == "__main__":
    cli.run(main)
