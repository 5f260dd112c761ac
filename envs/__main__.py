"""`python -m envs preflight [SIMULATOR ...]`: does each simulator work on this machine?"""

from __future__ import annotations

import argparse
import logging
import sys
from typing import List, Optional

from envs import preflight
from envs.api import did_you_mean


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m envs", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("preflight", help="start simulators and say what is wrong")
    command.add_argument("simulators", nargs="*", help="all of them by default")
    command.add_argument("-v", "--verbose", action="store_true", help="whole error messages")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING if options.verbose else logging.ERROR)
    try:
        return _preflight(options.simulators)
    except ValueError as error:
        parser.error(str(error))


def _preflight(asked: List[str]) -> int:
    """0 when every simulator that is installed, and every one asked for, works."""
    rows = preflight.simulators()
    for name in asked:
        if name not in rows:
            raise did_you_mean("simulator", name, rows)
    failed = False
    for name in asked or rows:
        check = preflight.check(rows[name])
        print("\n".join(preflight.report(check)), flush=True)
        failed |= check.problem is not None and (check.installed or name in asked)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
