"""Export a prepared dataset of the store as a LeRobot v3 dataset.

.venv/bin/python jobs/export_lerobot.py libero_object-0123456789ab /data/libero_object --fps 20
"""

from __future__ import annotations

from pathlib import Path

from vla_platform import cli
from vla_platform.local import LocalDataset

from vlm4vla.data.lerobot_write import write_lerobot
from vlm4vla.data.prepared import Prepared


def arguments() -> cli.argparse.Namespace:
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("dataset", help="its id, as prepare_data and collect_demos print it")
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--fps", type=cli.positive, default=20, help="control steps a second")
    parser.add_argument("--robot", default="panda", help="LeRobot's robot_type")
    parser.add_argument("--images", action="store_true", help="exact PNG frames, not H.264 videos")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    source = Prepared(LocalDataset.of(cli.ready_store(args.store), args.dataset).everything())
    episodes = write_lerobot(args.folder, source, args.fps, args.robot, video=not args.images)
    print(f"{episodes} episodes: {args.folder}")
    cli.write_json(args.json, [{"folder": str(args.folder), "episodes": episodes}])
    return 0


if __name__ == "__main__":
    cli.run(main)
