"""The report from a store: `python -m dashboards.report --store URL --out FOLDER`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dashboards.archive import ArchiveError, open_archive
from dashboards.report.site import build
from vlm4vla.capability import parse


def main() -> int:
    args = _arguments()
    try:
        extra = parse(args.capability.read_text()) if args.capability else []
        built = build(open_archive(args.store), args.out, extra, args.videos)
    except (ArchiveError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    took = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in built.seconds.items())
    print(
        f"{built.runs} runs, {built.cells} cells, {built.episodes:,} episodes; {built.measured} "
        f"of the paper's numbers measured; {built.problems} problems ({took})"
    )
    print(f"open {built.folder / 'index.html'}")
    if args.json:
        fields = {**vars(built), "folder": str(built.folder)}
        args.json.write_text(json.dumps(fields, indent=1) + "\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="report", description="A static site from a store.")
    parser.add_argument(
        "--store", required=True, help="a folder, or s3://bucket/prefix?endpoint=URL"
    )
    parser.add_argument("--out", type=Path, required=True, help="the site's folder")
    parser.add_argument("--capability", type=Path, help="more scores, as vlm4vla/capability.json")
    parser.add_argument("--no-videos", dest="videos", action="store_false", help="leave them out")
    parser.add_argument("--json", type=Path, help="also write what was built here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
