"""What every job's command line shares: common flags, one-sentence errors, JSON results."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from envs.process import SimulatorDied, SimulatorMissing
from vla_platform import places, preemption
from vla_platform.assignments import PoolError
from vla_platform.cluster import CLUSTERS, Cluster
from vla_platform.preemption import PreemptedError
from vla_platform.remote import PolicyRefusedError, PolicyUnavailableError
from vla_platform.rows import BrokenRowsError
from vla_platform.scrub import scrub
from vla_platform.store import Store, StoreError, open_store

EXPECTED = (
    ValueError,
    FileNotFoundError,
    StoreError,
    BrokenRowsError,
    SimulatorMissing,
    SimulatorDied,
    PolicyUnavailableError,
    PolicyRefusedError,
    PoolError,
)
"""Errors that are the user's to mend: shown as one sentence; their trace goes to a file, because
new code raises them by mistake, too."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something: neither None nor that a switch is off."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags every job has."""
    made = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    made.add_argument(
        "--store",
        default=places.default_store(),
        help="where everything is kept: a folder, or s3://bucket/prefix?endpoint=URL",
    )
    made.add_argument("--seed", type=int, default=0, help="seed of initial weights and data order")
    made.add_argument("--json", type=_file, metavar="PATH", help="also write the result rows here")
    return made


def add_dataset(made: Any) -> None:
    """made: a parser or a group of one."""
    made.add_argument(
        "--dataset", metavar="ID", help="in the store; else published data, else an expert's"
    )


def _file(text: str) -> Path:
    """A path for argparse: what cannot be a file is refused before the work, not after it."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder: name a file in it")
    return path


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number of at least 1")
    return int(text)


def add_cluster(made: Any) -> None:
    """The flags of jobs that train: see `cluster_of`."""
    made.add_argument("--preset", choices=CLUSTERS, default="laptop", help="the cluster")
    made.add_argument(
        "--workers", nargs=2, type=positive, metavar=("MIN", "MAX"), help="instead of its own"
    )
    made.add_argument(
        "--gpu-gb", type=float, metavar="GB", help="memory of one GPU, instead of the preset's 80"
    )


def cluster_of(args: argparse.Namespace) -> Cluster:
    """The preset with what the command line says otherwise; ValueError for MIN above MAX."""
    cluster = CLUSTERS[args.preset]
    if args.workers:
        least, most = args.workers
        if least > most:
            raise ValueError(f"--workers {least} {most}: the first is the fewest, the second most")
        cluster = replace(cluster, workers=(least, most))
    return replace(cluster, gpu_gb=args.gpu_gb or cluster.gpu_gb)


def ready_store(url: str) -> Store:
    """The store, after a check that a study could run on it."""
    store = open_store(url)
    store.probe()
    return store


def write_json(path: Path | None, told: Any) -> None:
    """Write what a job has to tell; nothing for None."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told, indent=1) + "\n")


def run(main: Callable[[], int | None]) -> None:
    """Run a job's main; expected errors end it with exit code 2, one sentence and where to look.

    Told to go (SIGTERM), it ends with `preemption.EXIT_CODE`: start it again to continue.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(signal.SIGTERM))  # as Ray's drivers do
    try:
        code = main()
    except EXPECTED as error:
        print(f"error: {error}{_traced(error)}", file=sys.stderr)  # noqa: T201
        code = 2
    except PreemptedError as notice:
        print(notice, file=sys.stderr)  # noqa: T201
        code = preemption.EXIT_CODE
    except SystemExit as end:
        if end.code != signal.SIGTERM:
            raise
        print("stopped by SIGTERM; the same command continues", file=sys.stderr)  # noqa: T201
        code = preemption.EXIT_CODE
    except KeyboardInterrupt:
        print("stopped; the same command continues where it was", file=sys.stderr)  # noqa: T201
        code = 130
    sys.exit(code or 0)


def _traced(error: BaseException) -> str:
    """Leave the error's trace in a file, the last of each job; what to say of it."""
    path = places.home() / "errors" / f"{Path(sys.argv[0]).stem}.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(scrub("".join(traceback.format_exception(error))))
    except OSError:
        return ""
    return f"\n(its trace: {path})"
