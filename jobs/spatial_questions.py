"""Ask spatial questions (BridgeVQA) about a simulator's scenes or about published pictures.

.venv/bin/python jobs/spatial_questions.py libero_object --tasks 0 1 --scenes 50 --out PATH
.venv/bin/python jobs/spatial_questions.py --pictures rlds /data/bridge_orig/1.0.0 --out PATH

PATH is a folder that `prepare_questions.py bridgevqa bridgevqa=PATH` takes, and whose maps
omni-generation draws. A simulator's answers come from exact poses, those about pictures from a
detector's and a depth model's guesses. Needs no Ray; started again it goes on where it was.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from vla_platform import cli
from vla_platform.progress import Meter

from envs.benchmarks import benchmark
from envs.process import SimulatorProcess
from envs.scenes import exact, scenes
from vlm4vla.aux import bridge_vqa
from vlm4vla.aux.spatial import Margins


@dataclass(frozen=True)
class Scenes:
    """What is looked at. margins: how clearly things must differ; None for exact poses."""

    name: str
    count: int
    each: Iterable[bridge_vqa.Scene]
    margins: Margins | None = None


def arguments() -> cli.argparse.Namespace:
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("benchmark", nargs="?", help="libero_object, libero_10, calvin, …")
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="names or numbers; all if absent"
    )
    parser.add_argument(
        "--scenes", type=cli.positive, default=20, help="of each task or published episode"
    )
    parser.add_argument("--questions", type=cli.positive, default=10, help="of each scene, at most")
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="folder")
    real = parser.add_argument_group("published pictures, their geometry guessed")
    real.add_argument(
        "--pictures", nargs="+", metavar=("FORMAT", "PATH"), help="as prepare_data.py reads them"
    )
    real.add_argument("--episodes", type=cli.positive, help="the first so many; all if absent")
    real.add_argument("--names", nargs="+", metavar="NAME", help="things to look for")
    real.add_argument("--detector", metavar="MODEL", help="OWLv2, of the hub or a folder")
    real.add_argument("--depth", metavar="MODEL", help="Depth Anything, metric, likewise")
    real.add_argument("--threshold", type=float, default=0.2, help="score a found thing must have")
    real.add_argument("--device", default="cpu", help="where the models run: cpu, cuda")
    return parser.parse_args()


def simulated(args: cli.argparse.Namespace, stack: ExitStack) -> Scenes:
    row = exact(benchmark(args.benchmark))
    tasks = row.choose_tasks(args.tasks)
    process = stack.enter_context(SimulatorProcess(row))
    looks = scenes(process, tasks, args.scenes, args.seed)
    return Scenes(row.name, len(tasks) * args.scenes, looks)


def pictured(args: cli.argparse.Namespace) -> Scenes:
    from vlm4vla.aux import estimated  # torch: only for pictures
    from vlm4vla.data.prepare import open_source

    kind, *paths = args.pictures
    source = open_source(kind, [Path(path) for path in paths])
    count = args.scenes * min(len(source), args.episodes or len(source))
    estimator = estimated.Estimator.load(
        args.detector or estimated.DETECTOR,
        args.depth or estimated.DEPTH,
        args.threshold,
        args.device,
    )
    looks = estimated.scenes(source, estimator, args.names or estimated.NAMES, args.scenes)
    return Scenes(kind, count, islice(looks, count), estimated.MARGINS)


def main() -> int:
    args = arguments()
    if bool(args.benchmark) == bool(args.pictures):
        raise ValueError("give a benchmark to simulate or --pictures FORMAT PATH, one of the two")
    with ExitStack() as stack:
        found = pictured(args) if args.pictures else simulated(args, stack)
        meter = stack.enter_context(Meter(found.name))
        path = bridge_vqa.write(
            *(found.each, args.out, args.questions, args.seed, found.margins),
            progress=lambda done: meter.show(done, found.count),
        )
    counts = Counter(each["about"] for each in json.loads(path.read_text()))
    for about, count in counts.items():
        print(f"{about}: {count} questions")
    print(f"{sum(counts.values())} questions about {found.count} scenes: {path}")
    cli.write_json(args.json, [{"path": str(path), **counts}])
    return 0


if __name__ == "__main__":
    cli.run(main)
