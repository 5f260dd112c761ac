"""A study in a loop while everything around it breaks: nothing lost, doubled, changed or grown.

    make soak [FOR=2400] [KEEP=FOLDER]

Every round runs the same small learning-rate study (demonstrations, trainings, rollouts, through
Tune) from an empty prefix of a SeaweedFS behind a faulty proxy, on a Ray head that lives as long
as the soak. Faults come on a seeded schedule until the study has ended; its rows and its
checkpoints must then be those of an undisturbed one. Totals of several soaks add up in soak.json
beside this file. As root the working files lie on a small disk that fills up; without, that is
left out and said. The driver's clock jumps as Python code sees it: libfaketime, which would show
it to Ray's C++ as well, makes `time.sleep` fail at times (EINVAL).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from vla_platform.artifacts import COMPLETE
from vla_platform.rows import decode
from vla_platform.store import Store, open_store

from tests.bench.measured import write
from tests.faulty_proxy import Fault, FaultyProxy, faulty_proxy
from tests.seaweed import Seaweed, credentials, seaweed
from tests.vla_platform import faults
from tests.vla_platform.faults import COMPARED, ROOT, Stage, stage

OUT = Path(__file__).with_name("soak.json")
STUDY = [
    *("--backbones", "tiny-paligemma-1", "--lrs", "1e-3", "2e-3", "--steps", "150"),
    *("--states", "6", "--confirm", "2"),
]
PAUSE_S = (3.0, 12.0)
"""Between two faults."""
SHARE = 0.02
"""Of all requests to the store that go wrong all the time."""
ATTEMPTS = 25
"""Drivers of a round, the killed ones included."""
ROUND_S = 1500.0
DISK = "size=1500m"
JUMPING = """\
import time

def jumped(real=time.time):
    with open({offset!r}) as file:
        return real() + float(file.read() or 0)

time.time = jumped
time.time_ns = lambda: int(jumped() * 1e9)
"""
"""A driver's sitecustomize. offset: the file with seconds."""
DAEMONS = re.compile(r"gcs_server|raylet/raylet|dashboard/dashboard\.py|dashboard/agent\.py")


@dataclass
class Ground:
    """What lives as long as the soak. reference: what an undisturbed study comes to."""

    stage: Stage
    server: Seaweed
    proxy: FaultyProxy
    folder: Path
    disk: Path | None
    clock: Path
    reference: dict[str, Any] = field(default_factory=dict)

    def job(self, store: str, out: Path, log: Path) -> subprocess.Popen[str]:
        """The study's driver."""
        environment = {**self.stage.environment, "RAY_ADDRESS": self.stage.address}
        paths = [str(self.clock.parent), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        command = [sys.executable, "jobs/lr_sweep.py", "--store", store, "--json", str(out)]
        with log.open("a") as sink:
            return subprocess.Popen(
                [*command, *STUDY], cwd=ROOT, env=environment, stdout=sink, stderr=sink, text=True
            )


def outcome(store: Store) -> dict[str, Any]:
    """Every row by its key and every checkpoint's digest; AssertionError for a key that has two.

    BrokenRowsError or ValueError for a file that is half-written.
    """
    rows: dict[str, Any] = {}
    for key in store.list("cells/"):
        if key.endswith(".parquet"):
            for row in decode(store.get(key)).select(COMPARED).to_pylist():
                known = rows.setdefault(row["key"], row)
                assert known == row, f"{key} has another row than the one there was: {row}"
    markers = [key for key in store.list("policies/") if key.endswith(f"/{COMPLETE}")]
    digests = {key: json.loads(store.get(key))["digest"] for key in markers}
    return {"rows": rows, "checkpoints": digests}


def play(ground: Ground, number: int, seed: int) -> dict[str, Any]:
    """One round; AssertionError unless it ends as the undisturbed study did."""
    name, dice = f"round-{number}-{seed}", random.Random(f"{seed}/{number}")
    out, log = ground.folder / f"{name}.json", ground.folder / f"{name}.log"
    through = f"s3://exp/{name}?endpoint={ground.proxy.endpoint}"
    before, began = Counter(ground.stage.injected), time.monotonic()
    faults.answering(ground.stage, ground.proxy, SHARE, seed)
    driver: list[subprocess.Popen[str]] = []
    own_ends: list[str] = []
    with faults.until_over(_disturbing(ground, dice, driver)):
        for _ in range(ATTEMPTS):
            driver[:] = [ground.job(through, out, log)]
            code = _ended(driver[0])
            if code == 0:
                break
            if code != -signal.SIGKILL:
                own_ends.append(f"{code}: {log.read_text().strip().splitlines()[-1][:200]}")
        else:
            raise AssertionError(f"{ATTEMPTS} drivers did not end {name}: {own_ends}")
    ground.proxy.reset()
    found = outcome(open_store(ground.server.url(name)))
    _compare(found, ground.reference)
    assert json.loads(out.read_text()) == ground.reference["table"], "another table was printed"
    ground.stage.assert_empty()
    injected = ground.stage.injected - before
    row = {
        "seconds": round(time.monotonic() - began),
        "faults": dict(sorted(injected.items())),
        "drivers_that_gave_up": own_ends,
        "episodes": len(found["rows"]),
        "checkpoints": len(found["checkpoints"]),
        "log_bytes": log.stat().st_size,
        **held(ground),
    }
    print(json.dumps(row), flush=True)
    return row


def _ended(driver: subprocess.Popen[str]) -> int:
    try:
        return driver.wait(timeout=ROUND_S)
    finally:
        driver.kill()  # where the soak itself is told to go


def _compare(found: dict[str, Any], reference: dict[str, Any]) -> None:
    for what in ("checkpoints", "rows"):
        lost = sorted(set(reference[what]) - set(found[what]))
        more = sorted(set(found[what]) - set(reference[what]))
        assert not lost and not more, f"{what}: lost {lost[:5]}, nobody's {more[:5]}"
        changed = [key for key, value in reference[what].items() if found[what][key] != value]
        assert not changed, f"{what} that came out otherwise: {changed[:5]}"


def _disturbing(ground: Ground, dice: random.Random, driver: list[Any]) -> Callable[[], None]:
    """An action for `until_over`: waits, then one fault of some kind."""
    kinds = _kinds(ground, driver, dice)

    def act() -> None:
        time.sleep(dice.uniform(*PAUSE_S))
        name = dice.choice(sorted(kinds))
        if kinds[name]():
            ground.stage.injected[name] += 1

    return act


Disturb = Callable[[], bool]


def _kinds(ground: Ground, driver: list[Any], dice: random.Random) -> dict[str, Disturb]:
    """By name: does it, returns whether there is something to count."""

    def killed(kind: str) -> Disturb:
        def act() -> bool:
            ground.stage.kill(kind, dice)  # counts for itself
            return False

        return act

    def driver_killed() -> bool:
        # Each costs a start and, in a training, a lease's term: half as often as the others.
        if not driver or driver[0].poll() is not None or dice.random() < 0.5:
            return False
        driver[0].kill()
        return True

    def store_killed() -> bool:
        ground.server.kill()
        time.sleep(dice.uniform(0.5, 3.0))
        ground.server.start()
        return True

    def network(fault: Fault) -> Disturb:
        def act() -> bool:
            usual, ground.proxy.rule = ground.proxy.rule, lambda method, path: fault
            time.sleep(dice.uniform(2.0, 6.0))
            ground.proxy.rule = usual
            return True

        return act

    def disk_full() -> bool:
        assert ground.disk is not None
        balloon = ground.disk / "balloon"
        with suppress(OSError), balloon.open("wb") as file:
            while True:
                file.write(bytes(2**20))
        time.sleep(dice.uniform(2.0, 6.0))
        balloon.unlink()
        return True

    def clock_jumps() -> bool:
        ground.clock.write_text(f"{dice.choice('+-')}{dice.randint(1, 600)}\n")
        return True

    kinds: dict[str, Disturb] = {
        **{f"kill -9 {kind}": killed(kind) for kind in faults.VICTIMS},
        "kill -9 driver": driver_killed,
        "kill -9 store": store_killed,
        "store outage": network(Fault(status=503, code="SlowDown")),
        "slow network": network(Fault(delay_s=0.3)),
        "network cut": network(Fault(cut=True)),
        "clock jumps": clock_jumps,
    }
    if ground.disk is not None:
        kinds["disk full"] = disk_full
    return kinds


def held(ground: Ground) -> dict[str, int]:
    """Memory, open files and logs of Ray's own processes, which live through all rounds."""
    found, logs = [], Path()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if DAEMONS.search(line) and process.environ().get(faults.MARK) == ground.stage.mark:
                found.append((process.memory_info().rss, process.num_fds()))
                if told := re.search(r"--log[-_]dir=(\S+)", line):
                    logs = Path(told[1])
    size = sum(path.stat().st_size for path in logs.rglob("*") if path.is_file())
    return {
        "ray_mb": round(sum(rss for rss, _ in found) / 2**20),
        "ray_files": sum(files for _, files in found),
        "ray_log_mb": round(size / 2**20) if logs.name else -1,
    }


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A tmpfs for what jobs write locally; None, and said, where it cannot be mounted."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", folder], check=False)
    if done.returncode:
        print("disk full: left out, mounting a small disk needs root", flush=True)
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def clock_file(folder: Path) -> Path:
    """Where drivers read how far their clocks are off; `JUMPING` lies beside it."""
    folder.mkdir()
    file = folder / "offset"
    file.write_text("0\n")
    (folder / "sitecustomize.py").write_text(JUMPING.format(offset=str(file)))
    return file


@contextmanager
def opened(folder: Path) -> Iterator[Ground]:
    """Everything, and what an undisturbed study comes to."""
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(folder / "disk"))
        work = disk or folder / "work"
        for name in ("home", "tmp"):
            (work / name).mkdir(parents=True)
        os.environ |= {**credentials(), "VLA_HOME": f"{work}/home", "TMPDIR": f"{work}/tmp"}
        server = stack.enter_context(seaweed(folder / "weed"))
        proxy = stack.enter_context(faulty_proxy(server.endpoint))
        running = stack.enter_context(stage(dashboard=True))
        ground = Ground(running, server, proxy, folder, disk, clock_file(folder / "clock"))
        out, log = folder / "undisturbed.json", folder / "undisturbed.log"
        driver = ground.job(server.url("undisturbed"), out, log)
        assert _ended(driver) == 0, log.read_text()[-3000:]
        ground.reference = outcome(open_store(server.url("undisturbed")))
        ground.reference["table"] = json.loads(out.read_text())
        print(f"undisturbed: {held(ground)}", flush=True)
        yield ground


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2400.0)
    parser.add_argument("--seed", type=int, help="of the faults; default: another each time")
    parser.add_argument("--keep", type=Path, help="an empty folder for logs, which then stay")
    parser.add_argument("--json", type=Path, default=OUT)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what it started ends
    seed = random.randrange(10**6) if options.seed is None else options.seed
    rounds = json.loads(options.json.read_text())["rounds"] if options.json.exists() else []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True, dir="/tmp") as name:
        folder = options.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        with opened(folder) as ground:
            number, until = 0, time.monotonic() + options.seconds
            while time.monotonic() < until:
                made = {"seed": seed, "date": time.strftime("%Y-%m-%d", time.gmtime())}
                rounds.append(made | play(ground, number, seed))
                number += 1
                write(options.json, report(rounds))
    print(json.dumps({k: v for k, v in report(rounds).items() if k != "rounds"}, indent=1))


def report(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Totals; a round that lost, doubled or changed anything has ended the soak instead."""
    total: Counter[str] = sum((Counter(row["faults"]) for row in rounds), Counter())
    return {
        "minutes": round(sum(row["seconds"] for row in rounds) / 60, 1),
        "faults": dict(sorted(total.items())),
        "faults_in_all": sum(total.values()),
        "episodes_in_all": sum(row["episodes"] for row in rounds),
        "checkpoints_in_all": sum(row["checkpoints"] for row in rounds),
        "lost_doubled_or_changed": 0,
        "rounds": rounds,
    }


if __name__ == "__main__":
    main()
