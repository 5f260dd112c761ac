"""A real SeaweedFS on this machine: free ports, a folder, ended with SIGKILL by pid."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ACCESS_KEY, SECRET_KEY = "test-access-key", "planted-secret-5f1d0c"
_GRPC_OFFSET = 10_000
_FIRST, _LAST = 20_000, 29_900
"""Ports whose gRPC twins (+10000) also stay out of Ray's 10002–19999 and of the ephemeral range."""


@dataclass
class Seaweed:
    """One server. `kill` and `start` bring it down and up again over the same folder and ports."""

    folder: Path
    bucket: str = "exp"
    ports: list[int] = field(default_factory=lambda: free_ports(5))
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports[3]}"

    def url(self, prefix: str = "") -> str:
        return f"s3://{self.bucket}/{prefix}?endpoint={self.endpoint}"

    def start(self, seconds: float = 30.0) -> None:
        """Returns once the server takes a write."""
        master, volume, filer, s3, admin = self.ports
        ports = [
            f"-master.port={master}",
            f"-volume.port={volume}",
            f"-filer.port={filer}",
            f"-s3.port={s3}",
            f"-admin.port={admin}",
        ]
        quiet = ["-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        local = [
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-dir={self.folder}",
            "-master.telemetry=false",
        ]
        with open(self.folder.parent / f"{self.folder.name}.log", "ab") as log:
            self.process = subprocess.Popen(
                [
                    _weed(),
                    "-logtostderr=true",
                    "mini",
                    *local,
                    *ports,
                    *quiet,
                    f"-bucket={self.bucket}",
                ],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **credentials()},
                start_new_session=True,
            )
        self._await_write(seconds)

    def kill(self) -> None:
        """SIGKILL: a clean stop can hang."""
        if self.process is not None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _await_write(self, seconds: float) -> None:
        import boto3
        from botocore.config import Config

        config = Config(connect_timeout=1, read_timeout=5, retries={"total_max_attempts": 1})
        s3 = boto3.session.Session(ACCESS_KEY, SECRET_KEY, region_name="us-east-1").client(
            "s3", endpoint_url=self.endpoint, config=config
        )
        deadline = time.monotonic() + seconds
        while True:
            try:
                s3.put_object(Bucket=self.bucket, Key="_started", Body=b"")
                return
            except Exception:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)


@contextlib.contextmanager
def seaweed(folder: Path, bucket: str = "exp") -> Iterator[Seaweed]:
    """A running server over `folder`; the caller's environment needs `credentials()`."""
    folder.mkdir(parents=True, exist_ok=True)
    server = Seaweed(folder, bucket)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def credentials() -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}


def free_ports(count: int) -> list[int]:
    """Ports on loopback that are free now, and whose gRPC twins are."""
    found: list[int] = []
    for port in random.sample(range(_FIRST, _LAST), 2_000):
        if _free(port) and _free(port + _GRPC_OFFSET):
            found.append(port)
            if len(found) == count:
                return found
    raise RuntimeError(f"no {count} free ports between {_FIRST} and {_LAST}")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0 and binds(port)


def binds(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _weed() -> str:
    return str(Path(sys.executable).with_name("weed"))
