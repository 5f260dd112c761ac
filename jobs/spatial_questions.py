"""Ask spatial questions about a simulator's scenes (BridgeVQA), with answers from exact poses.

.venv/bin/python jobs/spatial_questions.py libero_object --tasks 0 1 --scenes 50 --out PATH

PATH is a folder that `prepare_questions.py bridgevqa bridgevqa=PATH` takes, and whose maps
omni-generation draws. Needs one simulator and no Ray; started again it goes on where it was.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from vla_platform import cli
from vla_platform.progress import Meter

from envs.benchmarks import benchmark
from envs.process import SimulatorProcess
from envs.scenes import exact, scenes
from vlm4vla.aux import bridge_vqa


def arguments() -> cli.argparse.Namespace:
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("benchmark", help="libero_object, libero_10, calvin, …")
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="names or numbers; all if absent"
    )
    parser.add_argument("--scenes", type=cli.positive, default=20, help="of each task")
    parser.add_argument("--questions", type=cli.positive, default=10, help="of each scene, at most")
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="folder")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    row = exact(benchmark(args.benchmark))
    tasks = row.choose_tasks(args.tasks)
    total = len(tasks) * args.scenes
    with SimulatorProcess(row) as process, Meter(row.name) as meter:
        path = bridge_vqa.write(
            scenes(process, tasks, args.scenes, args.seed),
            *(args.out, args.questions, args.seed),
            progress=lambda done: meter.show(done, total),
        )
    counts = Counter(each["about"] for each in json.loads(path.read_text()))
    for about, count in counts.items():
        print(f"{about}: {count} questions")
    print(f"{sum(counts.values())} questions about {total} scenes: {path}")
    cli.write_json(args.json, [{"path": str(path), **counts}])
    return 0


if __name__ == "__main__":
    cli.run(main)
