"""One background process with a pid file: started, asked, and stopped, never by its name."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

START_S = 120.0
"""A Ray head on a busy machine takes half a minute."""
STOP_S = 30.0
KILL_S = 10.0
"""Even a killed process may need a moment to be gone."""


class ServiceFailedError(Exception):
    """A service did not start; the message ends with its last lines."""


@dataclass(frozen=True)
class Service:
    """A process in a session of its own. health: a URL that answers 200 once it is up.

    environment: added to ours. token: sent to `health` as a bearer token. clean: whether it is
    asked to end (SIGTERM) before it is made to. after: what is left to do once it answers.
    """

    name: str
    folder: Path
    command: Sequence[str]
    url: str
    health: str
    environment: Mapping[str, str] = field(default_factory=dict)
    token: str = field(default="", repr=False)
    clean: bool = True
    after: Callable[[], None] = field(default=lambda: None, repr=False)

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def _pid_file(self) -> Path:
        return self.folder / f"{self.name}.pid"

    def start(self, seconds: float = START_S) -> None:
        """Returns once it answers; ServiceFailedError otherwise, and then nothing is left."""
        (self.folder / self.name).mkdir(exist_ok=True)
        if answers(self.health, self.token):
            raise ServiceFailedError(
                f"{self.name}: something else answers at {self.health}: take another --base"
            )
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder / self.name,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )
        self._pid_file.write_text(f"{process.pid} {_started(process.pid)}")
        deadline = time.monotonic() + seconds
        while not answers(self.health, self.token):
            if process.poll() is not None or time.monotonic() > deadline:
                ended = process.poll() is not None
                self.stop()
                raise ServiceFailedError(self._last_words(ended, seconds))
            time.sleep(0.2)
        self.after()

    def pid(self) -> int:
        """Its process id, or 0: a number that another process has taken since is not it."""
        try:
            pid, started = self._pid_file.read_text().split()
        except (OSError, ValueError):
            return 0
        return int(pid) if started and _started(int(pid)) == started else 0

    def state(self) -> str:
        pid = self.pid()
        if not pid:
            return "not running"
        word = "runs" if answers(self.health, self.token) else "does not answer"
        return f"{word} at {self.url} (pid {pid})"

    def stop(self, seconds: float = STOP_S) -> bool:
        """End it and everything in its session; whether it was running."""
        pid = self.pid()
        if pid:
            end(pid, seconds if self.clean else 0)
        self._pid_file.unlink(missing_ok=True)
        return bool(pid)

    def _last_words(self, ended: bool, seconds: float) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()[-5:]
        why = "ended at once" if ended else f"did not answer within {seconds:.0f} s"
        return "\n  ".join([f"{self.name} {why}; the end of {self.log}:", *lines])


def end(leader: int, seconds: float) -> None:
    """Ask a session's leader to go, wait so long, then kill what is left of the session."""
    if seconds:
        _signal(leader, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while _stat(leader) and time.monotonic() < deadline:
        _reap(leader)
        time.sleep(0.1)
    deadline = time.monotonic() + KILL_S
    while (members := list(_session(leader))) and time.monotonic() < deadline:
        for member in members:
            _signal(member, signal.SIGKILL)
        _reap(leader)
        time.sleep(0.05)


def answers(url: str, token: str = "", seconds: float = 2.0) -> bool:
    """Whether a GET is answered with 200."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with contextlib.suppress(urllib.error.URLError, OSError, ValueError):
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return bool(answer.status == 200)
    return False


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name; [] for a process that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
    return [] if fields[0] == "Z" else fields


def _started(pid: int) -> str:
    """When a process began, in clock ticks since boot; "" when it is gone."""
    fields = _stat(pid)
    return fields[19] if fields else ""


def _session(leader: int) -> Iterator[int]:
    """Every living process of the leader's session; its number is not given out again before."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields and int(fields[3]) == leader:
                yield int(entry.name)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
