"""`make services` and `make submit` together, on real servers with token authentication."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.services import Services
from infra.supervise import Service, ServiceFailedError
from tests.infra.conftest import free_base

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE_RAYS_RANGE = range(20_000, 65_536)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    services = Services(tmp_path_factory.mktemp("all"), free_base(), cpus=2)
    try:
        services.start()
    except ServiceFailedError as failed:
        if "not installed" in str(failed):
            pytest.skip(str(failed))
        raise
    yield services
    services.stop()


@pytest.fixture
def shell(services: Services, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of somebody who sourced the services' `env` file."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    lines = (services.folder / "env").read_text().splitlines()
    added = dict(line.removeprefix("export ").split("=", 1) for line in lines)
    added = {name: value.strip("'") for name, value in added.items()}
    return {**os.environ, **added}


def ask(shell: dict[str, str], *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "vla_platform.submit", *arguments],
        cwd=ROOT,
        env={**shell, **variables},
        capture_output=True,
        text=True,
        timeout=240,
    )


def identity(text: str) -> str:
    found = re.search(r"raysubmit_\w+", text)
    assert found, text
    return found.group()


def state(shell: dict[str, str], job: str, *wanted: str) -> str:
    """The job's state once it is one of those wanted."""
    deadline = time.monotonic() + 120
    while True:
        out = ask(shell, "status", job)
        if (now := out.stdout.split()[1]) in wanted or time.monotonic() > deadline:
            return now
        time.sleep(0.5)


@pytest.mark.full
def test_all_of_them_run_and_answer(services: Services, capsys: pytest.CaptureFixture[str]):
    assert services.status() == 0
    assert capsys.readouterr().out.count("runs at http://127.0.0.1:") == len(services.all())
    services.start()  # again: finds them, starts nothing
    pids = re.findall(r"pid (\d+)", capsys.readouterr().out)
    assert pids == [str(service.pid()) for service in services.all()]


def listening(inodes: set[str]) -> Iterator[tuple[str, int]]:
    """(address in hex, port) of these sockets, of both IP versions."""
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, port = fields[1].split(":")
                yield address, int(port, 16)


def sockets(leader: int) -> set[str]:
    """Inodes of every socket that a process of the leader's session holds."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            session = (process / "stat").read_text().rpartition(")")[2].split()[3]
            if int(session) == leader:
                links = [os.readlink(entry) for entry in (process / "fd").iterdir()]
                found |= {link[8:-1] for link in links if link.startswith("socket:[")}
        except OSError:
            continue
    return found


LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")


@pytest.mark.full
def test_servers_listen_on_loopback_and_outside_rays_range(services: Services):
    for service in services.all():
        found = set(listening(sockets(service.pid())))
        assert found, service.name
        beyond = {port for address, port in found if address not in LOOPBACK}
        if service.name == "ray":  # whose nodes speak gRPC on every interface, with the token
            assert services.base + 65 not in beyond, "the dashboard and the job server"
        else:
            assert not beyond, f"{service.name} listens beyond loopback on {beyond}"
            assert all(port in OUTSIDE_RAYS_RANGE for _, port in found)


@pytest.mark.full
@pytest.mark.skipif(not shutil.which("prometheus"), reason="needs Debian's prometheus")
def test_prometheus_reads_its_targets(services: Services):
    query = f"{services.prometheus}/api/v1/query?query=up%7Bjob%3D%22prometheus%22%7D"
    deadline = time.monotonic() + 60
    while True:
        with urllib.request.urlopen(query, timeout=5) as answer:
            if b'"1"]' in answer.read():
                return
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.mark.full
@pytest.mark.parametrize(("token", "status"), [(None, 401), ("wrong" * 8, 403)])
def test_a_missing_or_wrong_token_is_refused(services: Services, token: str | None, status: int):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{services.dashboard}/api/jobs/", headers=headers)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code == status


@pytest.mark.full
def test_a_wrong_token_is_one_sentence(shell: dict[str, str], tmp_path: Path):
    (tmp_path / "token").write_text("f" * 64)
    out = ask(shell, "status", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert out.returncode == 2
    assert out.stderr.count("\n") == 1 and "refuses the token" in out.stderr
    assert "f" * 64 not in out.stderr


@pytest.mark.full
def test_a_job_is_submitted_followed_and_succeeds(services: Services, shell: dict[str, str]):
    """Through make, as in the README; the job reads the store that the services keep."""
    out = subprocess.run(
        ["make", "submit", "JOB=jobs/study.py", "ARGS=--dry-run --tables 5"],
        cwd=ROOT,
        env=shell,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert out.returncode == 0, out.stdout + out.stderr
    job = identity(out.stdout)
    assert f"{services.dashboard}/#/jobs/{job}" in out.stdout
    assert "trainings are needed" in out.stdout and services.store_url.split("?")[0] in out.stdout
    assert f"{job}: SUCCEEDED" in out.stdout
    assert "trainings are needed" in ask(shell, "logs", job).stdout


@pytest.mark.full
def test_a_failed_job_gives_its_exit_code(shell: dict[str, str]):
    out = ask(shell, "run", "jobs/study.py", "--dry-run", "--tables", "tabel1")
    assert out.returncode == 2, out.stdout + out.stderr
    assert "FAILED" in out.stdout and "table1" in out.stdout


@pytest.mark.full
def test_a_detached_job_is_stopped(shell: dict[str, str]):
    long = ("--backbones", "tiny-paligemma-1", "--steps", "100000", "--demonstrations", "500")
    out = ask(shell, "run", "--detach", "jobs/backbone_sweep.py", *long)
    assert out.returncode == 0, out.stderr
    job = identity(out.stdout)
    assert state(shell, job, "RUNNING", "FAILED") == "RUNNING"
    assert "asked to stop" in ask(shell, "stop", job).stdout
    assert state(shell, job, "STOPPED") == "STOPPED"
    assert job in ask(shell, "status").stdout


@pytest.mark.full
def test_unknown_jobs_and_ids_are_one_sentence(shell: dict[str, str]):
    out = ask(shell, "run", "jobs/backbone_swep.py")
    assert out.returncode == 2 and "Did you mean 'jobs/backbone_sweep.py'" in out.stderr
    out = ask(shell, "status", "raysubmit_nothing")
    assert out.returncode == 2 and "raysubmit_nothing" in out.stderr


@pytest.mark.full
def test_no_secret_in_logs_or_ray_s_own_records(services: Services, shell: dict[str, str]):
    """After all the jobs above: logs of the servers and jobs, and what the job server tells."""
    secrets = [value.encode() for value in services.access().secrets.values()]
    folders = (services.folder, services.ray_folder)
    kept = {"secrets.json", "ray-token", "s3.json", "env"}
    texts = [
        p for f in folders for p in f.rglob("*") if p.suffix in (".log", ".out", ".err", ".json")
    ]
    assert len(texts) > 10
    for path in texts:
        if path.name not in kept and path.is_file():
            data = path.read_bytes()
            assert not [secret for secret in secrets if secret in data], path
    ask_it = f"submit.connect({services.dashboard!r}).list_jobs()"
    code = f"from vla_platform import submit; print({ask_it})"
    asked = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=shell, capture_output=True)
    told = asked.stdout + asked.stderr
    assert b"PYTHONPATH" in told and not [secret for secret in secrets if secret in told]


def test_without_prometheus_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Nobody but root can install it; asked for are the store's and Ray's states."""
    monkeypatch.setenv("PATH", str(tmp_path))
    services = Services(tmp_path / "services", free_base())
    services.access().write(services.environment())
    assert [service.name for service in services.all()] == ["seaweedfs", "ray"]
    services.stop()
    assert services.status() == 1
    said = capsys.readouterr().out
    assert "goes on without it" in said and "apt-get install" in said


def test_stopping_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A store alone, to be quick; the fixture above stops all three."""
    services = Services(tmp_path, free_base())
    services.access().write(services.environment())
    server = services.seaweedfs()
    server.start()
    pid = server.pid()
    assert pid and server.stop() and not server.pid()
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()
    assert not server.stop(), "nothing was left to stop"
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", services.base + 3)) != 0


def test_a_pid_of_somebody_else_is_never_ended(tmp_path: Path):
    """A pid file outlives a reboot; its number may be anybody's then."""
    services = Services(tmp_path, free_base())
    services.access().write(services.environment())
    server = services.seaweedfs()
    (tmp_path / "seaweedfs.pid").write_text(f"{os.getpid()} 12345")
    assert server.pid() == 0
    assert not server.stop()


def test_a_server_that_cannot_start_says_why(tmp_path: Path):
    command = [sys.executable, "-c", "print('no such luck'); raise SystemExit(3)"]
    service = Service("broken", tmp_path, command, "http://x", "http://127.0.0.1:9/")
    with pytest.raises(ServiceFailedError, match=r"ended at once(.|\n)*no such luck"):
        service.start()
    assert not service.pid()
