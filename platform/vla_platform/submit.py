"""Sending a job to a Ray cluster and watching it: `make submit JOB=jobs/backbone_sweep.py`.

What a user would type by hand (`ray job submit --working-dir . --runtime-env
infra/runtime_env.yaml -- python JOB …`), with one-sentence errors and the driver's exit code.
A cluster that asks for a token is told the one in RAY_AUTH_TOKEN_PATH.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import logging
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from vla_platform import cli
from vla_platform.scrub import scrub

ADDRESS = "http://127.0.0.1:8265"
RUNTIME_ENV = "infra/runtime_env.yaml"
SETTLE_S = 30.0
"""How long a job whose log has ended may take to be called finished."""
_OVERRIDES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Ray lets these win over the address it is given."""


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    client = connect(args.address)
    with _one_sentence(args.address):
        if args.do == "run":
            return run(client, args.address, args.job, args.arguments, args.detach)
        if args.do == "logs":
            return follow(client, args.id)
        if args.do == "stop":
            stopped = client.stop_job(args.id)
            print(f"{args.id}: {'asked to stop' if stopped else 'was not running'}")
            return 0
        return status(client, args.id)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make submit", description=__doc__.split("\n")[0])
    default = os.environ.get("RAY_API_SERVER_ADDRESS") or ADDRESS
    parser.add_argument("--address", default=default, help="the cluster's dashboard")
    commands = parser.add_subparsers(dest="do", required=True)
    command = commands.add_parser("run", help="submit a job and follow its log")
    command.add_argument("--detach", action="store_true", help="submit and return at once")
    command.add_argument("job", help="jobs/NAME.py")
    command.add_argument("arguments", nargs=argparse.REMAINDER, help="the job's own")
    for name, text in {"logs": "follow a job's log", "stop": "end a job"}.items():
        commands.add_parser(name, help=text).add_argument("id")
    commands.add_parser("status", help="of one job, or all").add_argument("id", nargs="?")
    return parser


def connect(address: str) -> JobSubmissionClient:
    """The cluster's job server; ValueError when it is not there or refuses us."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError("the cluster's address must look like http://host:8265, without a user.")
    for name in _OVERRIDES:
        os.environ.pop(name, None)
    for name in ("ray", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with _one_sentence(address):
        return JobSubmissionClient(address.rstrip("/"))


def run(
    client: JobSubmissionClient, address: str, job: str, arguments: Sequence[str], detach: bool
) -> int:
    """Submit; unless detached, follow the log and return the driver's exit code."""
    command = entrypoint(job, arguments)
    identity = client.submit_job(entrypoint=command, runtime_env=runtime_env(Path.cwd()))
    print(f"{identity}: {command}")
    print(f"dashboard: {address.rstrip('/')}/#/jobs/{identity}", flush=True)
    if detach:
        print(f"follow it with: make submit DO=logs ID={identity} ADDRESS={address}")
        return 0
    try:
        return follow(client, identity)
    except KeyboardInterrupt:
        print(f"\nno longer following; it goes on. To end it: make submit DO=stop ID={identity}")
        return 130


def entrypoint(job: str, arguments: Sequence[str]) -> str:
    """The command line of a job; ValueError for an unknown job, or one with a secret in it."""
    known = sorted(str(path) for path in Path("jobs").glob("*.py"))
    if job not in known:
        close = difflib.get_close_matches(job, known, 1)
        hint = f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."
        raise ValueError(f"no job {job!r} under {Path.cwd()}.{hint}")
    command = shlex.join(["python", job, *arguments])
    if scrub(command) != command:
        raise ValueError(
            "the job's arguments contain a secret of this environment, and whoever sees the "
            "dashboard would see it: put it into the environment of the cluster's nodes."
        )
    return command


def runtime_env(root: Path) -> dict[str, Any]:
    """The submitted tree and what its file asks for; ValueError when that holds a secret."""
    text = (root / RUNTIME_ENV).read_text()
    if scrub(text) != text:
        raise ValueError(f"{RUNTIME_ENV} contains a secret: Ray shows it to everybody.")
    return {"working_dir": str(root), **yaml.safe_load(text)}


def follow(client: JobSubmissionClient, identity: str) -> int:
    """Print a job's log until it ends; the driver's exit code, 1 when there is none."""
    try:
        asyncio.run(_print_log(client, identity))
    except aiohttp.ClientError as error:
        raise ValueError(
            f"lost the cluster while following {identity} ({error}); the job may go on: "
            f"make submit DO=logs ID={identity}"
        ) from None
    deadline = time.monotonic() + SETTLE_S
    while not (info := client.get_job_info(identity)).status.is_terminal():
        if time.monotonic() > deadline:
            raise RuntimeError(f"the log of {identity} ended, but it is {info.status}")
        time.sleep(0.2)
    print(f"{identity}: {info.status}")
    return 0 if info.status == JobStatus.SUCCEEDED else (info.driver_exit_code or 1)


async def _print_log(client: JobSubmissionClient, identity: str) -> None:
    async for text in client.tail_job_logs(identity):
        print(text, end="", flush=True)


def status(client: JobSubmissionClient, identity: str | None) -> int:
    """One job's status, or a line for each."""
    jobs = [client.get_job_info(identity)] if identity else client.list_jobs()
    for job in sorted(jobs, key=lambda job: job.start_time or 0):
        since = time.strftime("%F %T", time.gmtime((job.start_time or 0) / 1000))
        print(f"{job.submission_id or job.job_id}  {job.status}  {since}  {job.entrypoint}")
    return 0


@contextmanager
def _one_sentence(address: str) -> Iterator[None]:
    """Ray's errors as a ValueError that says what to do; none of them quotes the token."""
    try:
        yield
    except AuthenticationError:
        raise ValueError(
            f"{address} refuses the token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a "
            "file with the token that the head was started with."
        ) from None
    except ConnectionError:
        raise ValueError(
            f"no Ray cluster answers at {address}: start one (`make services`), or name its "
            "dashboard with ADDRESS=http://host:8265."
        ) from None
    except RuntimeError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{address}: {scrub(lines[0])[:500]}") from None


if __name__ == "__main__":
    cli.run(main)
