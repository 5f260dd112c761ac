"""The PyPI peer `vla-eval` on LIBERO, as it comes: shards, its model server, its recording.

It renders two 256-pixel cameras at every step and sends one of them as PNG. Its construction and
first reset are not counted, in its favour.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vla_platform.places import home

from tests.bench.bench_rollouts_bare import prepared_environment, processor_seconds

HERE = Path(__file__).resolve().parent
PEER = "0.8.0"
START_S = 60.0


class PeerMissingError(RuntimeError):
    """There is no environment with the peer; the message says how to make one."""


def interpreter() -> Path:
    """The peer's own Python: VLA_PEER_PYTHON, else `peers/vla-eval` under VLA_HOME."""
    found = Path(os.environ.get("VLA_PEER_PYTHON") or home() / "peers/vla-eval/bin/python")
    if not found.exists():
        raise PeerMissingError(
            f"the peer vla-eval {PEER} is not installed at {found}: run "
            "`make bench-peer` (after `make libero`) or set VLA_PEER_PYTHON"
        )
    return found


def config(port: int, suite: str, tasks: int, episodes: int, steps: int, out: Path) -> str:
    """The peer's YAML, as JSON. Episode i starts from the task's stored state i, as ours does."""
    entry = {
        "benchmark": "vla_eval.benchmarks.libero.benchmark:LIBEROBenchmark",
        "params": {"suite": suite, "seed": 0},
        "max_tasks": tasks,
        "max_steps": steps,
        "episodes_per_task": episodes,
    }
    server = {"url": f"ws://127.0.0.1:{port}", "timeout": 120}
    return json.dumps({"server": server, "output_dir": str(out), "benchmarks": [entry]})


@contextmanager
def model_server(python: Path, port: int, horizon: int, notes: Path) -> Iterator[int]:
    """The server's process id while it runs."""
    arguments = [str(HERE / "bench_rollouts_server.py"), str(port), str(horizon), str(notes)]
    server = subprocess.Popen([python, *arguments])
    try:
        _await(f"http://127.0.0.1:{port}/health", server)
        yield server.pid
    finally:
        server.kill()
        server.wait()


def _await(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(OSError), urllib.request.urlopen(url, timeout=1):
            return
        time.sleep(0.2)
    raise RuntimeError(f"the peer's model server did not come up at {url}: see its output above")


def measure(
    suite: str, tasks: int, episodes: int, steps: int, horizon: int, shards: int
) -> dict[str, Any]:
    """Control steps per second of so many shards together."""
    python = interpreter()
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), _free_port()
        text = config(port, suite, tasks, episodes, steps, folder / "results")
        (folder / "config.yaml").write_text(text)
        notes = folder / "notes.jsonl"
        with model_server(python, port, horizon, notes) as server:
            spent = _run_shards(python, folder, shards, server, notes)
        return summary(_read(notes), spent)


def _run_shards(python: Path, folder: Path, shards: int, server: int, notes: Path) -> float:
    """Runs them to their end; processor seconds of all since every shard had begun an episode."""
    environment = prepared_environment()
    command = [str(python.with_name("vla-eval")), "run", "--no-docker", "--yes", "--config"]
    command += [str(folder / "config.yaml"), "--num-shards", str(shards), "--eval-id", "bench"]
    logs = [folder / f"shard-{index}.log" for index in range(shards)]
    running = []
    for index, log in enumerate(logs):
        with log.open("wb") as sink:
            shard = [*command, "--shard-id", str(index)]
            running.append(
                subprocess.Popen(
                    shard, env=environment, cwd=folder, stdout=sink, stderr=subprocess.STDOUT
                )
            )
    try:
        spent = _watch([server, *(process.pid for process in running)], running, notes)
        for process, log in zip(running, logs, strict=True):
            if process.wait():
                raise RuntimeError(f"a shard of the peer failed: …{log.read_text()[-1500:]}")
    finally:
        for process in running:
            process.kill()
    return spent


def _watch(pids: list[int], running: list[subprocess.Popen[bytes]], notes: Path) -> float:
    """Sampled, because a process that has ended no longer says what it used."""
    first: float | None = None
    known = dict.fromkeys(pids, 0.0)
    while any(process.poll() is None for process in running):
        known = {pid: max(before, processor_seconds(pid)) for pid, before in known.items()}
        if first is None and len({note["shard"] for note in _read(notes)}) == len(running):
            first = sum(known.values())
        time.sleep(0.2)
    return sum(known.values()) - (first or 0.0)


def _read(notes: Path) -> list[dict[str, Any]]:
    """Whole lines so far."""
    lines = notes.read_text().split("\n")[:-1] if notes.exists() else []
    return [json.loads(line) for line in lines]


def summary(notes: list[dict[str, Any]], spent: float) -> dict[str, Any]:
    """Each shard from the start of its first episode to the end of its last; rates added up."""
    rate, steps, episodes = 0.0, 0, 0
    for shard in {note["shard"] for note in notes}:
        mine = [note for note in notes if note["shard"] == shard]
        ended = [note for note in mine if note["kind"] == "end"]
        span = ended[-1]["at"] - mine[0]["at"]
        rate += sum(note["steps"] for note in ended) / span
        steps, episodes = steps + sum(note["steps"] for note in ended), episodes + len(ended)
    return {
        "steps_per_s": rate,
        "steps_per_cpu_s": steps / spent,
        "episodes": episodes,
        "steps": steps,
        "version": PEER,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
