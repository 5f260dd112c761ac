"""infra/slurm/sweep.sbatch as a real Slurm runs it: over two nodes, told to go, and queued again.

Each node is a network namespace with a host name of its own and a slurmd in it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.supervise import end
from tests.infra.namespaces import NEEDED, joined, wait_for

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = ("10.77.43.1", "10.77.43.2")
CONF = """
ClusterName=vla
SlurmctldHost={a}(10.77.43.1)
AuthType=auth/none
CredType=cred/none
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
MpiDefault=none
SwitchType=switch/none
SrunPortRange=60001-63000
KillWait=5
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName={a} NodeAddr=10.77.43.1 CPUs=2 RealMemory=4000 Gres=gpu:8
NodeName={b} NodeAddr=10.77.43.2 CPUs=2 RealMemory=4000 Gres=gpu:8
PartitionName=all Nodes=ALL Default=YES State=UP
"""
JOB = """
import os, pathlib, signal, socket, sys, time
import ray

ray.init()
while len(alive := [node for node in ray.nodes() if node["Alive"]]) < 2:
    time.sleep(0.5)
here = ray.remote(lambda: socket.gethostname())
for node in alive:
    place = {f"node:{node['NodeManagerAddress']}": 0.01}
    print("node", ray.get(here.options(resources=place).remote()), flush=True)
    cache = ray.remote(lambda: os.environ["VLA_CACHE"]).options(resources=place)
    print("cache", ray.get(cache.remote()), flush=True)

def told(*_):
    print("told to go", flush=True)
    sys.exit(75)

signal.signal(signal.SIGTERM, told)
first = pathlib.Path(sys.argv[1])
if not first.exists():
    first.touch()
    time.sleep(600)
print("the end")
"""
pytestmark = [
    pytest.mark.full,
    NEEDED,
    pytest.mark.skipif(
        not (shutil.which("slurmctld") and shutil.which("slurmd") and shutil.which("sbatch")),
        reason="needs Debian's slurmctld, slurmd and slurm-client",
    ),
]


@dataclass(frozen=True)
class Slurm:
    """names: of the two hosts, which are those of their namespaces."""

    folder: Path
    names: tuple[str, str]

    def on(self, name: str, *command: str) -> list[str]:
        """The command as a node's own: its network, host name, and a /sys that slurmd accepts."""
        inside = f"""
            mount --bind {self.folder}/hosts /etc/hosts
            mount -t tmpfs none /sys/fs/cgroup
            hostname {name}
            exec "$@" """
        unshared = ("unshare", "--uts", "--mount", "bash", "-ec", inside, "inside")
        return ["ip", "netns", "exec", name, *unshared, *command]

    @property
    def environment(self) -> dict[str, str]:
        ours = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        conf = {"SLURM_CONF": str(self.folder / "slurm.conf"), "HOME": str(self.folder / "home")}
        return {**ours, **conf, "PYTHONPATH": f"{ROOT}:{ROOT}/platform"}

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        log = open(self.folder / f"{command[0]}-{name}.log", "ab")  # noqa: SIM115
        return subprocess.Popen(
            self.on(name, *command), stdout=log, stderr=log, env=self.environment, cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip

    def told(self, *command: str) -> subprocess.CompletedProcess[str]:
        asked = self.on(self.names[0], *command)
        return subprocess.run(asked, capture_output=True, text=True, env=self.environment, cwd=ROOT)

    def ask(self, *command: str) -> str:
        out = self.told(*command)
        assert out.returncode == 0, out.stderr
        return out.stdout

    def job(self, number: str, field: str) -> str:
        found = re.search(rf"\b{field}=(\S+)", self.ask("scontrol", "show", "job", number))
        assert found, field
        return found.group(1)

    def write(self) -> None:
        a, b = self.names
        for name in ("state", "home", f"spool-{a}", f"spool-{b}"):
            (self.folder / name).mkdir()
        for number in range(8):
            (self.folder / f"gpu{number}").touch()
        (self.folder / "slurm.conf").write_text(CONF.format(folder=self.folder, a=a, b=b))
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-7]\n")
        hosts = zip(("127.0.0.1", *ADDRESSES), ("localhost", a, b), strict=True)
        (self.folder / "hosts").write_text("".join(f"{ip} {name}\n" for ip, name in hosts))
        (self.folder / "job.py").write_text(JOB)


@pytest.fixture
def slurm() -> Iterator[Slurm]:
    mark = os.getpid()
    names = (f"vla-s{mark}a", f"vla-s{mark}b")
    with ExitStack() as opened:
        short = tempfile.TemporaryDirectory(prefix="sl-", dir="/tmp", ignore_cleanup_errors=True)
        made = Slurm(Path(opened.enter_context(short)), names)
        made.write()
        opened.enter_context(joined(names, ADDRESSES))
        commands = [(names[0], ("slurmctld", "-D"))]
        commands += [(name, ("slurmd", "-D", "-N", name)) for name in names]
        for name, command in commands:
            opened.callback(end, made.start(name, *command).pid, 5)
        idle = ("sinfo", "--noheader", "--states=idle", "--Format=nodes")
        wait_for(lambda: made.told(*idle).stdout.strip() == "2", 90, "Slurm on both nodes")
        yield made


def raylets(name: str) -> list[str]:
    pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout
    names = [Path(f"/proc/{pid}/comm") for pid in pids.split()]
    return [path.read_text() for path in names if path.exists() and "raylet" in path.read_text()]


def test_the_script_spans_the_nodes_and_continues_after_a_notice(slurm: Slurm):
    log, first = slurm.folder / "job.log", slurm.folder / "first"
    script = ("infra/slurm/sweep.sbatch", str(slurm.folder / "job.py"), str(first))
    said = slurm.ask("sbatch", "--nodes=2", f"--output={log}", *script)
    number = said.split()[-1]
    wait_for(first.exists, 240, "Ray on both nodes")
    token = slurm.folder / "home" / ".ray" / f"token-{number}"
    assert token.stat().st_mode & 0o777 == 0o600

    slurm.ask("scancel", "--signal=TERM", "--batch", number)
    wait_for(lambda: slurm.job(number, "JobState") == "PENDING", 60, "being queued again")
    slurm.ask("scontrol", "update", f"jobid={number}", "starttime=now")  # Slurm waits two minutes
    wait_for(lambda: slurm.job(number, "JobState") in ("COMPLETED", "FAILED"), 300, "the rest")
    text = log.read_text()
    assert slurm.job(number, "ExitCode") == "0:0", text
    assert slurm.job(number, "Restarts") == "1"
    assert text.count("told to go") == text.count("the end") == 1
    assert all(text.count(f"node {name}") == 2 for name in slurm.names), text
    assert text.count(f"cache {tempfile.gettempdir()}/vla-cache-") == 4, text
    assert not token.exists()
    wait_for(lambda: not any(map(raylets, slurm.names)), 30, "Ray's end")
