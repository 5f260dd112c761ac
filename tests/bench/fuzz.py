"""Bad input at scale: damaged messages, files and values, by the million. Run by `make fuzz`.

    PYTHONPATH=.:platform python -m tests.bench.fuzz --seconds 300 --keep /tmp/found

The targets are those of `tests/fuzz`. Each has its turn in a process of its own, which may crash
or hang without ending the rest; such an input is a bug as much as one that is taken for right
or refused by an error of another kind. Bugs are kept as files, totals are added to fuzz.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import mmap
import os
import pickle
import signal
import struct
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded

from tests.bench.measured import write
from tests.fuzz import demonstrations, live, messages, stored, test_properties
from tests.fuzz.damage import Target

SLICE_S = 4.0
HANG_S = 30.0
"""An input that takes longer hangs; the slowest that do not, start a process."""
SHARED = 1 << 20
EACH = 3
"""Inputs kept of one bug."""
TARGETS = (*messages.TARGETS, *stored.TARGETS, *demonstrations.TARGETS, *live.TARGETS)


class Turn:
    """What a turn's process tells its parent, in memory they share: a count and the last input."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, SHARED)

    def begin(self, number: int, found: Any) -> None:
        try:
            data = pickle.dumps(found)[: SHARED - 16]
        except RecursionError:
            data = pickle.dumps("an input nested too deep to be kept")
        self.memory[16 : 16 + len(data)] = data
        self.memory[:16] = struct.pack("QQ", number, len(data))

    def count(self) -> int:
        return int(struct.unpack("Q", self.memory[:8])[0])

    def last(self) -> Any:
        return pickle.loads(self.memory[16 : 16 + struct.unpack("Q", self.memory[8:16])[0]])


class Bugs:
    """Where inputs are kept, some of each bug."""

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.seen = folder, Counter[str]()

    def keep(self, target: str, why: str, found: Any) -> None:
        name = f"{target} {why}".replace("/", "_").replace("\n", " ")[:150]
        self.seen[name] += 1
        if self.folder is None or self.seen[name] > EACH:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        data = found if isinstance(found, bytes) else repr(found).encode()
        (self.folder / f"{name} {self.seen[name]}").write_bytes(data)


def told(error: BaseException) -> str:
    """A bug in a word and its place."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}-{last.lineno}"


def work(target: Target, seed: str, until: float, turn: Turn, bugs: Bugs) -> Counter[str]:
    """Inputs of one target until the time is over."""
    rng, outcomes, number = Random(seed), Counter[str](), 0
    while time.monotonic() < until:
        found = target.make(rng)
        number += 1
        turn.begin(number, found)
        try:
            outcomes[target.check(found)] += 1
        except Exception as error:
            outcomes["BUG"] += 1
            bugs.keep(target.name, told(error), found)
            target.close()
    target.close()
    return outcomes


def hold(name: str, seed: str, until: float, turn: Turn, bugs: Bugs) -> Counter[str]:
    """Values of one property; hypothesis has its own order, so it is asked for few at a time."""
    check, strategies = test_properties.PROPERTIES[name]
    outcomes, rng = Counter[str](), Random(seed)
    quiet = settings(
        max_examples=200,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    number = 0

    def counted(**values: Any) -> None:
        nonlocal number
        number += 1
        turn.begin(number, repr(values))
        try:
            check(**values)
            outcomes["held"] += 1
        except Exception as error:
            outcomes["BUG"] += 1
            bugs.keep(name, told(error), values)

    while time.monotonic() < until:
        seeded(rng.randrange(2**32))(quiet(given(**strategies)(counted)))()
    return outcomes


def fork(work_on: Any, name: str, seconds: float, bugs: Bugs) -> Counter[str]:
    """A turn in a process of its own; outcomes as it tells them, or how it died."""
    turn = Turn()
    with TemporaryDirectory() as folder:
        result = Path(folder, "outcomes.json")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                outcomes = work_on(time.monotonic() + seconds, turn)
                result.write_text(json.dumps(outcomes))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        died = watched(child, turn)
        if not died and result.exists():
            return Counter(json.loads(result.read_text()))
    bugs.keep(name, died or "failed", turn.last() if turn.count() else b"")
    return Counter({"of a turn cut short": max(0, turn.count() - 1), "BUG": 1})


def watched(child: int, turn: Turn) -> str:
    """How a turn's process ended: "" for well."""
    count, since = 0, time.monotonic()
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else ""
        if turn.count() != count:
            count, since = turn.count(), time.monotonic()
        if time.monotonic() - since > HANG_S:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "hang"
        time.sleep(0.02)


def turns(names: Sequence[str], seed: int, bugs: Bugs) -> Iterator[tuple[str, Counter[str], float]]:
    """(target, outcomes, seconds) of one turn after the other, for ever."""
    targets = {target.name: target for target in TARGETS}
    unknown = set(names) - targets.keys() - test_properties.PROPERTIES.keys()
    if unknown:
        raise SystemExit(
            f"no target {unknown}; there are {[*targets, *test_properties.PROPERTIES]}"
        )
    round_ = 0
    while True:
        for name in names or [*targets, *test_properties.PROPERTIES]:
            mix, began = f"{seed} {name} {round_}", time.monotonic()
            if name in targets:
                doing = lambda until, turn: work(targets[name], mix, until, turn, bugs)  # noqa: B023, E731
            else:
                doing = lambda until, turn: hold(name, mix, until, turn, bugs)  # noqa: B023, E731
            yield name, fork(doing, name, SLICE_S, bugs), time.monotonic() - began
        round_ += 1


def add(path: Path, seed: int, found: dict[str, tuple[Counter[str], float]]) -> dict[str, Any]:
    """Totals of all runs so far, this one's added."""
    totals = json.loads(path.read_text()) if path.exists() else {"inputs": 0, "seeds": []}
    totals["seeds"].append(seed)
    targets = totals.setdefault("targets", {})
    for name, (outcomes, seconds) in found.items():
        row = targets.setdefault(name, {"inputs": 0, "seconds": 0.0, "outcomes": {}})
        row["inputs"] += sum(outcomes.values())
        row["seconds"] = round(row["seconds"] + seconds, 1)
        merged = Counter(row["outcomes"]) + outcomes
        row["outcomes"] = dict(sorted(merged.items()))
    totals["inputs"] = sum(row["inputs"] for row in targets.values())
    totals["bugs"] = sum(row["outcomes"].get("BUG", 0) for row in targets.values())
    write(path, totals)
    return totals


def main() -> int:
    args = arguments()
    logging.getLogger("websockets").setLevel(logging.CRITICAL + 1)
    warnings.simplefilter("ignore")
    bugs = Bugs(args.keep)
    found: dict[str, tuple[Counter[str], float]] = {}
    began, inputs = time.monotonic(), 0
    for name, outcomes, seconds in turns(args.only, args.seed, bugs):
        before, spent = found.get(name, (Counter(), 0.0))
        found[name] = before + outcomes, spent + seconds
        inputs += sum(outcomes.values())
        print(f"{name}: {sum(outcomes.values())} in {seconds:.1f} s, {dict(outcomes)}", flush=True)
        if inputs >= args.inputs or time.monotonic() - began >= args.seconds:
            break
    totals = add(args.json, args.seed, found)
    wrong = sum(outcomes["BUG"] for outcomes, _ in found.values())
    print(f"{inputs} inputs, {wrong} bugs; {totals['inputs']} inputs of all runs")
    return 1 if wrong else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=240, help="stop then")
    parser.add_argument("--inputs", type=float, default=float("inf"), help="or after so many")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of every draw")
    parser.add_argument("--only", nargs="+", default=[], metavar="TARGET", help="these alone")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where inputs of bugs are kept")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
