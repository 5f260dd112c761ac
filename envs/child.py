"""A started worker process: how it is launched, asked, watched and killed."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Callable, Dict, Mapping, TypeVar

from envs import wire
from envs.wire import Message

log = logging.getLogger(__name__)
T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
CLOSE_TIMEOUT = 2.0
_TAIL_BYTES = 8_192
_STACK_DUMP_SECONDS = 0.3
SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY", re.I)
"""Environment variables that are named like this hold secrets."""


class SimulatorDied(RuntimeError):  # noqa: N818 an event, named as one
    """The child failed; its episode is lost, the next reset starts a new child. Picklable.

    silent: it did not answer in time and was killed, rather than that it ended or complained.
    """

    def __init__(self, reason: str, silent: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.silent = reason, silent


class SimulatorMissing(RuntimeError):  # noqa: N818
    """The simulator's interpreter is not installed: retrying does not help. Picklable."""


class Child:
    """A started worker: its process, our end of its socket and the end of its output."""

    def __init__(self, interpreter: str, simulator: str, env: Mapping[str, str]) -> None:
        self.sock, theirs = socket.socketpair()
        command = [interpreter, "-m", "envs.worker", "--simulator", simulator]
        command += ["--fd", str(theirs.fileno()), "--parent", str(os.getpid())]
        try:
            self.popen = _launch(command, _child_environment(env), theirs.fileno())
        except OSError as error:
            self.sock.close()
            raise SimulatorMissing(
                f"The interpreter {interpreter} does not start: {error}."
            ) from None
        finally:
            theirs.close()
        self.name = f"simulator {simulator} (pid {self.popen.pid})"
        assert self.popen.stdout is not None
        self.tail = _Tail(self.popen.stdout)
        self._finalizer = weakref.finalize(self, _kill_group, self.popen)

    def ask(
        self, message: Message, expected: str, timeout: float, read: Callable[[Message], T]
    ) -> T:
        """Send a message, wait for its reply and read it; SimulatorDied says why there is none."""
        deadline = time.monotonic() + timeout
        try:
            wire.send(self.sock, message, deadline)
            return self._read(message.kind, wire.receive(self.sock, deadline), expected, read)
        except TimeoutError:
            raise SimulatorDied(self._why_silent(message.kind, timeout), silent=True) from None
        except (wire.ConnectionClosed, OSError):
            raise SimulatorDied(self._why_ended(message.kind)) from None
        except wire.WireError as malformed:
            raise SimulatorDied(f"{self.name} sent a malformed message: {malformed}") from None

    def _read(self, kind: str, reply: Message, expected: str, read: Callable[[Message], T]) -> T:
        if reply.kind == "error":
            why = reply.value("error", str).strip()
            raise SimulatorDied(f"{self.name} failed in {kind!r}: {why}")
        if reply.kind != expected:
            raise SimulatorDied(f"{self.name} answered {kind!r} with {reply.kind!r}")
        return read(reply)

    def close(self) -> None:
        self.sock.close()
        try:
            self.popen.wait(CLOSE_TIMEOUT)
        except subprocess.TimeoutExpired:
            log.info("%s did not end within %s s; killed", self.name, CLOSE_TIMEOUT)
        self.kill()

    def kill(self) -> None:
        self.sock.close()
        self._finalizer()
        self.tail.finish()

    def _why_silent(self, kind: str, timeout: float) -> str:
        """Have the worker dump its Python stacks before it is killed: they name the hang."""
        self.popen.send_signal(signal.SIGUSR1)
        time.sleep(_STACK_DUMP_SECONDS)
        return (
            f"{self.name} took longer than {timeout:g} s for {kind!r} and was killed"
            + self.tail.quoted()
        )

    def _why_ended(self, kind: str) -> str:
        try:
            code = self.popen.wait(CLOSE_TIMEOUT)
        except subprocess.TimeoutExpired:
            return (
                f"{self.name} closed its socket during {kind!r} but did not end"
                + self.tail.quoted()
            )
        self.tail.finish()
        return f"{self.name} ended during {kind!r} with {_exit_text(code)}" + self.tail.quoted()


class _Tail:
    """Drains a child's stdout and stderr, so that it never blocks on them; keeps their end."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._kept = bytearray()
        self._thread = threading.Thread(target=self._drain, args=(pipe,), daemon=True)
        self._thread.start()

    def _drain(self, pipe: IO[bytes]) -> None:
        with pipe:
            while True:
                chunk = os.read(pipe.fileno(), 65_536)
                if not chunk:
                    return
                self._kept += chunk
                del self._kept[:-_TAIL_BYTES]

    def finish(self) -> None:
        """Wait for the last output; a grandchild may hold the pipe open, so not for long."""
        self._thread.join(1.0)

    def quoted(self) -> str:
        text = bytes(self._kept).decode("utf-8", "replace").strip()
        return f"; its last output:\n{text}" if text else "; it wrote nothing"


def _child_environment(extra: Mapping[str, str]) -> Dict[str, str]:
    """The parent's environment without its secrets, and without what would leak its packages."""
    dropped = ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "PYTHONSTARTUP")
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in dropped and not SECRET_NAME.search(name)
    }
    env.update(PYTHONPATH=str(ROOT), PYTHONHASHSEED="0", PYTHONNOUSERSITE="1")
    env.setdefault("OMP_NUM_THREADS", "1")
    env.update(extra)
    return env


_launcher_lock = threading.Lock()
_launchers: Dict[int, ThreadPoolExecutor] = {}


def _launch(command: list[str], env: Mapping[str, str], fd: int) -> subprocess.Popen[bytes]:
    """Start a child from one thread that lives as long as this process.

    The kernel's parent-death signal follows the *thread* that started the child: started from
    a pool's short-lived thread, the child would be killed when that thread ends.
    """
    with _launcher_lock:
        if os.getpid() not in _launchers:
            _launchers[os.getpid()] = ThreadPoolExecutor(1, "simulator-launcher")
        launcher = _launchers[os.getpid()]
    start = launcher.submit(
        subprocess.Popen,
        command,
        cwd=ROOT,
        env=dict(env),
        pass_fds=(fd,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    return start.result()


def _kill_group(popen: subprocess.Popen[bytes]) -> None:
    """SIGKILL the child and what it started, then reap it; once reaped its pid may be another's."""
    if popen.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
