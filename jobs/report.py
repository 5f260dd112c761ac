"""A static site from a study's store: the paper's numbers beside ours, figures, every run.

.venv/bin/python jobs/report.py --store s3://bucket/study --out site
.venv/bin/python jobs/report.py --audit-paper --json contradictions.json
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from vla_platform import cli, places

from vlm4vla.audit import audit_paper
from vlm4vla.backbones import backbone
from vlm4vla.capability import import_scores

ROOT = Path(__file__).resolve().parents[1]


def arguments() -> cli.argparse.Namespace:
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=places.home() / "report", help="the site")
    parser.add_argument(
        "--capability", type=Path, metavar="PATH", help="more scores for Figure 3's x-axis"
    )
    parser.add_argument("--no-videos", action="store_true", help="do not copy videos")
    parser.add_argument(
        "--audit-paper", action="store_true", help="only list where the paper contradicts itself"
    )
    parser.add_argument(
        "--import-scores",
        nargs="+",
        metavar=("BACKBONE", "FILE"),
        help="only turn result files of VLMEvalKit or lmms-eval into scores for --capability",
    )
    return parser.parse_args()


def main() -> int:
    args = arguments()
    if args.import_scores:
        return scores(args.json, *args.import_scores)
    return audit(args.json) if args.audit_paper else site(args)


def scores(path: Path | None, name: str, *files: str) -> int:
    found = [import_scores(Path(file), backbone(name).name) for file in files]
    rows = [dataclasses.asdict(score) for one in found for score in one.scores]
    for row in rows:
        print(f"{row['benchmark']}: {row['score']} from {row['source']}")
    for skipped in (text for one in found for text in one.skipped):
        print(f"no benchmark of A.4, left out: {skipped}")
    if path:
        path.write_text(json.dumps({"scores": rows}, indent=1) + "\n")
    return 0


def audit(path: Path | None) -> int:
    found = [dataclasses.asdict(finding) for finding in audit_paper()]
    cli.write_json(path, found)
    for one in found:
        print(f"{one['table']}, {one['row']}: {one['detail']} ({one['rule']})")
    print(f"{len(found)} contradictions in the paper's tables")
    return 0


def site(args: cli.argparse.Namespace) -> int:
    """In a process of its own: nobody imports the dashboards, and they read rows alone."""
    store = args.store if "://" in args.store else str(Path(args.store).expanduser().absolute())
    command = [sys.executable, "-m", "dashboards.report", "--store", store]
    command += ["--out", str(args.out.absolute())]
    for flag, path in (("--capability", args.capability), ("--json", args.json)):
        command += [flag, str(path.absolute())] if path else []
    command += ["--no-videos"] if args.no_videos else []
    return subprocess.run(command, cwd=ROOT).returncode


if __name__ == "__main__":
    cli.run(main)
