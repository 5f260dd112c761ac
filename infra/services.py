"""A store, Prometheus and a Ray head on this machine without Docker: `make services`.

    python -m infra.services start    store, Prometheus and Ray's dashboard on loopback
    source ~/.vla/services/env        the store, the token and the keys, for jobs started here
    python -m infra.services stop     ends what `start` started, by its pid

Everything lies in one folder, readable by its owner alone. Ports lie outside Ray's range for
workers (10002-19999), their twins 10000 higher, which SeaweedFS uses for gRPC, included.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import boto3

from infra.access import ADMIN, BUCKET, Access
from infra.supervise import Service, ServiceFailedError

ROOT = Path(__file__).resolve().parents[1]
BASE = 22_300
RULES = ROOT / "dashboards"
SCRAPE_S = 4  # a laptop's rollouts are over in half a minute; a cluster scrapes each 15 s
PROMETHEUS_MISSING = (
    "prometheus: not installed, so boards and alerts have no data and the rest goes on without it; "
    "as root: apt-get install --no-install-recommends prometheus"
)


@dataclass(frozen=True)
class Services:
    """Where the services live. base: their first port; cpus: what Ray may hand out."""

    folder: Path
    base: int = BASE
    cpus: int = 2

    @property
    def store_url(self) -> str:
        return f"s3://{BUCKET}/study?endpoint=http://127.0.0.1:{self.base + 3}"

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.base + 65}"

    @property
    def prometheus(self) -> str:
        return f"http://127.0.0.1:{self.base + 90}"

    @property
    def ray_folder(self) -> Path:
        """Short, because Ray's Unix sockets lie in it and a socket's path has a limit."""
        return Path(tempfile.gettempdir()) / f"vla-ray-{os.getuid()}-{self.base}"

    def access(self) -> Access:
        return Access.in_folder(self.folder)

    def environment(self) -> dict[str, str]:
        """What a job on this machine needs to use them."""
        access = self.access()
        return {
            "VLA_STORE": self.store_url,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(access.token_file),
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            **access.keys("train"),
        }

    def all(self) -> list[Service]:
        """In the order in which they start; without Prometheus where it is not installed."""
        prometheus = [self._prometheus()] if _find("prometheus") else []
        return [self.seaweedfs(), *prometheus, self._ray()]

    def start(self) -> None:
        """All or none: ServiceFailedError ends those that this call had started."""
        if not (_find("prometheus") or _install_prometheus()):
            print(PROMETHEUS_MISSING, flush=True)
        _private(self.folder)
        _private(self.ray_folder)
        self.access().write(self.environment())
        _config(self).write_text(prometheus_config(self))
        started: list[Service] = []
        try:
            for service in self.all():
                if not service.pid():
                    started.append(service)
                    service.start()
                print(f"{service.name}: {service.url} (pid {service.pid()})", flush=True)
        except BaseException:
            for service in reversed(started):
                service.stop()
            raise

    def stop(self) -> None:
        for service in reversed(self.all()):
            print(f"{service.name}: {'stopped' if service.stop() else 'was not running'}")

    def status(self) -> int:
        """0 when all of them that are installed run and answer."""
        states = {service.name: service.state() for service in self.all()}
        for name, state in states.items():
            print(f"{name}: {state}")
        if "prometheus" not in states:
            print(PROMETHEUS_MISSING)
        return int(any(not state.startswith("runs") for state in states.values()))

    def seaweedfs(self) -> Service:
        ports = dict(zip(("master", "volume", "filer", "s3", "admin"), range(5), strict=True))
        command = [_tool("weed"), "-logtostderr=true", "mini"]
        command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={self.folder / 'seaweedfs'}"]
        command += [f"-{name}.port={self.base + offset}" for name, offset in ports.items()]
        command += ["-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        command += ["-master.telemetry=false"]
        command += [f"-s3.config={self.access().s3_file}"]
        url = f"http://127.0.0.1:{self.base + 3}"
        # A clean stop can hang, and its files survive SIGKILL.
        return Service(
            *("seaweedfs", self.folder, command, url, f"{url}/healthz"),
            clean=False,
            after=partial(self._make_bucket, url),
        )

    def _make_bucket(self, url: str) -> None:
        """Here and not by the server's own flag, which makes it some time after it answers."""
        keys = {name.lower(): value for name, value in self.access().keys(ADMIN).items()}
        s3 = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys)
        if BUCKET not in {each["Name"] for each in s3.list_buckets()["Buckets"]}:
            s3.create_bucket(Bucket=BUCKET)

    def _prometheus(self) -> Service:
        command = [_tool("prometheus"), f"--config.file={_config(self)}"]
        command += [f"--storage.tsdb.path={self.folder / 'prometheus'}"]
        command += [f"--web.listen-address=127.0.0.1:{self.base + 90}"]
        command += ["--storage.tsdb.retention.time=30d"]
        url = self.prometheus
        return Service("prometheus", self.folder, command, url, f"{url}/-/ready")

    def _ray(self) -> Service:
        names = ["dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent"]
        names += ["metrics-export", "node-manager", "object-manager"]
        ports = {name: self.base + 70 + offset for offset, name in enumerate(names)}
        command = [_tool("ray"), "start", "--head", "--block", "--disable-usage-stats"]
        command += ["--node-ip-address=127.0.0.1", f"--port={self.base + 79}"]
        command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={self.base + 65}"]
        command += [f"--{name}-port={port}" for name, port in ports.items()]
        command += [f"--ray-client-server-port={self.base + 64}", f"--num-cpus={self.cpus}"]
        command += [f"--temp-dir={self.ray_folder}"]
        # Frames travel with their call: see `vla_platform.session`.
        tuned = {
            "metrics_report_interval_ms": SCRAPE_S * 1000,
            "max_direct_call_object_size": 2**20,
        }
        command += [f"--system-config={json.dumps(tuned)}"]
        bin_first = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        environment = {
            **self.environment(),
            "PATH": bin_first,  # a submitted job's `python` is this one
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        }
        health = f"{self.dashboard}/api/version"
        token = self.access().token()
        return Service("ray", self.folder, command, self.dashboard, health, environment, token)


def prometheus_config(services: Services) -> str:
    """The scrape config for these services, from the file that a cluster uses too."""
    text = (ROOT / "infra" / "prometheus" / "prometheus.yml").read_text()
    discovery = services.ray_folder / "prom_metrics_service_discovery.json"
    values = {"/tmp/ray/prom_metrics_service_discovery.json": discovery, "RULES": RULES}
    for old, new in values.items():
        text = text.replace(old, str(new))
    text = text.replace("scrape_interval: 15s", f"scrape_interval: {SCRAPE_S}s")
    return text.replace("localhost:9090", f"127.0.0.1:{services.base + 90}")


def _config(services: Services) -> Path:
    return services.folder / "prometheus.yml"


def _private(folder: Path) -> None:
    """A folder that only its owner can read; ValueError when somebody else made it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise ValueError(f"{folder} belongs to another user: remove it or take another --base")
    folder.chmod(0o700)


def _tool(name: str) -> str:
    """The program's path; ServiceFailedError where it is not installed."""
    found = _find(name)
    if not found:
        raise ServiceFailedError(f"{name} is not installed: run `make setup`")
    return found


def _find(name: str) -> str | None:
    """The program beside this Python, or on the path."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def _install_prometheus() -> str | None:
    """Debian's package, where we may install it; its path, or None."""
    if os.getuid() == 0 and shutil.which("apt-get"):
        print("installing Debian's prometheus …", flush=True)
        install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "prometheus"]
        for command in (install, ["apt-get", "update", "-q"], install):
            if shutil.which("prometheus"):
                break
            subprocess.run(command, capture_output=True)
    return shutil.which("prometheus")


def home() -> Path:
    """As in `envs.home`, which nothing here may import."""
    return Path(os.environ.get("VLA_HOME") or "~/.vla").expanduser().absolute()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make services", description=__doc__.split("\n")[0])
    parser.add_argument("do", choices=("start", "stop", "status"))
    parser.add_argument("--folder", type=Path, default=home() / "services", help="data, logs, keys")
    parser.add_argument("--base", type=int, default=BASE, help="first port; 100 are theirs")
    parser.add_argument("--cpus", type=int, default=max(2, os.cpu_count() or 2), help="Ray's")
    args = parser.parse_args(arguments)
    services = Services(args.folder.absolute(), args.base, args.cpus)
    try:
        if args.do == "status":
            return services.status()
        getattr(services, args.do)()
    except (ServiceFailedError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.do == "start":
        print(f"use them with: source {services.access().env_file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
