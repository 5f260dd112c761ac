"""Faults on a seeded schedule, and what must hold after each: used by tests and by bench_faults.

A `Stage` is a Ray cluster of its own with drivers as child processes, everything marked in its
environment, so that nothing that outlives its episode goes unseen.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from vla_platform import evaluation
from vla_platform.ledger import Ledger
from vla_platform.rows import decode
from vla_platform.store import Store

from envs.benchmarks import benchmark
from tests.faulty_proxy import Fault, FaultyProxy
from tests.seaweed import Seaweed, credentials
from tests.vla_platform.drive import wanted_of

ROOT = Path(__file__).resolve().parents[2]
MARK = "VLA_FAULTS_STAGE"
COMPARED = ["key", "task", "initial_state", "success", "steps", "replans", "final_frame"]
VICTIMS = {
    "child": "envs.worker",
    "host": "ray::Host",
    "replica": "ray::Replica",
    "trainer": "ray::RayTrainWorker",
}
"""What a process's command line says."""
ANSWERS = {
    "500": Fault(status=500),
    "503": Fault(status=503, code="SlowDown"),
    "409": Fault(status=409, code="ConditionalRequestConflict"),
    "slow": Fault(delay_s=0.5),
    "cut": Fault(cut=True),
    "lost": Fault(lost=True),
}
"""`lost`: the write takes effect, its answer does not arrive; the repetition meets a 412."""
PATIENCE_S = 240.0
GONE_S = 30.0


@dataclass
class Stage:
    """A cluster, and drivers on it. injected: faults by kind."""

    address: str
    mark: str
    environment: dict[str, str]
    injected: Counter[str] = field(default_factory=Counter)

    def driver(self, spec: dict[str, Any], log: Path) -> subprocess.Popen[str]:
        """A driver evaluating in the background; its output ends with its tally."""
        command = [sys.executable, "-m", "tests.vla_platform.drive", "play"]
        command.append(json.dumps({**spec, "address": self.address}))
        with log.open("a") as sink:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
            )

    def play(self, spec: dict[str, Any], log: Path) -> dict[str, Any]:
        """A driver from its start to its end; its tally."""
        return tally_of(self.driver(spec, log), log)

    def processes(self, kind: str) -> list[psutil.Process]:
        """Every living process of a kind, whoever its parent is by now."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if VICTIMS[kind] in " ".join(process.cmdline()) and self._ours(process):
                    found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def _ours(self, process: psutil.Process) -> bool:
        alive = process.status() != psutil.STATUS_ZOMBIE
        return alive and process.environ().get(MARK) == self.mark

    def kill(self, kind: str, dice: random.Random) -> bool:
        """SIGKILL one of a kind; False when there is none just now."""
        victims = self.processes(kind)
        if victims:
            with suppress(psutil.NoSuchProcess):
                dice.choice(victims).kill()
                self.injected[f"kill -9 {kind}"] += 1
        return bool(victims)

    def assert_empty(self) -> None:
        """No simulator, host or replica outlives its driver."""
        deadline = time.monotonic() + GONE_S
        while left := [p for kind in VICTIMS for p in self.processes(kind)]:
            assert time.monotonic() < deadline, f"orphans: {left}"
            time.sleep(0.2)


@contextmanager
def stage(dashboard: bool = False) -> Iterator[Stage]:
    """A cluster in a process of its own; it ends when its standard input does.

    dashboard: trainings ask it while they start.
    """
    mark = uuid.uuid4().hex
    environment = {**os.environ, **credentials(), MARK: mark, "OMP_NUM_THREADS": "1"}
    # A cluster started by a script asks for a token that drivers elsewhere do not send.
    environment["RAY_AUTH_MODE"] = "disabled"
    environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'platform'}"
    keeper = subprocess.Popen(
        [sys.executable, "-m", "tests.vla_platform.drive", "keep", *["dashboard"] * dashboard],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert keeper.stdout is not None
        address = keeper.stdout.readline().strip()
        assert address, "the cluster did not start: see its output above"
        yield Stage(address, mark, environment)
    finally:
        keeper.communicate(timeout=60)


def tally_of(driver: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    """What a driver says at its end; an AssertionError with its log when it failed."""
    out, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, (
        f"driver ended with {driver.returncode}: …{log.read_text()[-2000:]}"
    )
    said = [line for line in out.splitlines() if line.startswith("{")]  # Ray speaks there too
    assert said, f"no tally in {out[-2000:]!r}"
    return dict(json.loads(said[-1]))


def rows(store: Store, spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The outcomes of a cell; BrokenRowsError when one cannot be trusted."""
    table = Ledger(store).read(wanted_of(spec).cell()).require_sound()
    return list(table.select(COMPARED).to_pylist())


def check(store: Store, spec: dict[str, Any], undisturbed: list[dict[str, Any]]) -> None:
    """Each key once, outcomes equal to the undisturbed run, nothing half-written in sight."""
    wanted = wanted_of(spec)
    found = rows(store, spec)
    assert [row["key"] for row in found] == [row["key"] for row in undisturbed]
    assert found == undisturbed
    loose = list(store.children(f"cells/{wanted.cell().id}/episodes"))
    assert sorted(name.removesuffix(".parquet") for name in loose) == sorted(
        episode.key for episode in wanted.episodes()
    )
    for key in store.list("cells/"):
        data = store.get(key)
        decode(data) if key.endswith(".parquet") else json.loads(data)


@contextmanager
def until_over(action: Callable[[], object]) -> Iterator[None]:
    """`action` again and again beside the block; an error in it fails the block."""
    over, problems = threading.Event(), []

    def loop() -> None:
        try:
            while not over.is_set():
                action()
        except Exception as problem:
            problems.append(problem)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)
    assert not problems, problems


def killing(stage: Stage, kinds: dict[str, int], seed: int, pause: tuple[float, float]) -> Any:
    """An action for `until_over`: waits, then kills one of the kinds, each so often at most."""
    dice, left = random.Random(seed), dict(kinds)

    def act() -> None:
        time.sleep(dice.uniform(*pause))
        kinds_left = [kind for kind, count in left.items() if count]
        if kinds_left:
            kind = dice.choice(kinds_left)
            left[kind] -= stage.kill(kind, dice)

    return act


def restarting(stage: Stage, server: Seaweed, times: int, seed: int) -> Any:
    """An action that kills the store's server and starts it again on the same data."""
    dice, left = random.Random(seed), [times]

    def act() -> None:
        time.sleep(dice.uniform(0.5, 2.0))
        if left[0]:
            server.kill()
            left[0] -= 1
            stage.injected["kill -9 store"] += 1
            time.sleep(dice.uniform(0.1, 1.0))
            server.start()

    return act


def answering(stage: Stage, proxy: FaultyProxy, share: float, seed: int) -> None:
    """Let that share of the requests go wrong, in every way in turn."""
    dice, lock = random.Random(seed), threading.Lock()

    def rule(method: str, path: str) -> Fault | None:
        with lock:
            if dice.random() >= share:
                return None
            kind = dice.choice(sorted(ANSWERS))
            stage.injected[f"store answers {kind}"] += 1
            return ANSWERS[kind]

    proxy.rule = rule


def refuse_all(stage: Stage, proxy: FaultyProxy, fault: Fault, seconds: float) -> None:
    """An outage: every request gets the fault."""

    def rule(method: str, path: str) -> Fault:
        stage.injected["store outage, requests refused"] += 1
        return fault

    proxy.rule = rule
    time.sleep(seconds)
    proxy.reset()


def committed(store: Store, spec: dict[str, Any]) -> int:
    return len(list(store.children(f"cells/{wanted_of(spec).cell().id}/episodes")))


def await_commits(
    store: Store, spec: dict[str, Any], more: int, driver: subprocess.Popen[str], log: Path
) -> None:
    """Until so many more episodes are committed, or the driver has ended."""
    had, deadline = committed(store, spec), time.monotonic() + PATIENCE_S
    while committed(store, spec) < had + more and driver.poll() is None:
        assert time.monotonic() < deadline, f"nothing was committed: …{log.read_text()[-2000:]}"
        time.sleep(0.1)


def run_and_kill(
    stage: Stage,
    spec: dict[str, Any],
    log: Path,
    store: Store,
    times: int,
    seed: int,
) -> dict[str, Any]:
    """Kill the driver so often, each time when it has committed something more; then let it end."""
    dice = random.Random(seed)
    for _ in range(times):
        driver = stage.driver(spec, log)
        await_commits(store, spec, 3, driver, log)
        time.sleep(dice.uniform(0.0, 0.5))
        if driver.poll() is None:
            driver.send_signal(signal.SIGKILL)
            stage.injected["kill -9 driver"] += 1
        driver.communicate()
    return stage.play(spec, log)


def environment_of(store: Store, name: str = "tabletop") -> str:
    return evaluation.environment(Ledger(store), benchmark(name))
