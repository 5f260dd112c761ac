"""Some inputs for each target of the fuzzer, and what the fuzzer makes of a bug."""

from __future__ import annotations

import os
import signal
import time
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bench import fuzz
from tests.fuzz.damage import Target

INPUTS = 12
SEEDS = st.integers(0, 2**64)


@pytest.mark.parametrize("target", fuzz.TARGETS, ids=lambda target: target.name)
def test_bad_input_is_refused_by_name(target):
    slow = target.name.endswith("its end")

    @settings(max_examples=1 if slow else INPUTS, deadline=None, database=None)
    @given(seed=SEEDS)
    def check(seed):
        target.check(target.make(Random(seed)))

    try:
        check()
    finally:
        target.close()


def _late(found: int) -> str:
    if found % 5 == 4:
        raise KeyError(found)
    return "accepted"


def _killed(found: int) -> str:
    if found == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return "accepted"


def _silent(found: int) -> str:
    time.sleep(60 if found == 7 else 0)
    return "accepted"


@pytest.mark.parametrize(
    ("check", "why"), [(_late, "KeyError"), (_killed, "signal 9"), (_silent, "hang")]
)
def test_the_fuzzer_sees_a_bug(tmp_path, monkeypatch, check, why):
    monkeypatch.setattr(fuzz, "HANG_S", 2.0)
    bugs = fuzz.Bugs(tmp_path)
    target = Target("target", lambda rng: rng.randrange(10), check)
    turn = lambda until, turn: fuzz.work(target, "seed", until, turn, bugs)  # noqa: E731
    outcomes = fuzz.fork(turn, "target", 0.2, bugs)
    kept = sorted(tmp_path.iterdir())
    assert outcomes["BUG"] >= 1 and sum(outcomes.values()) > 1
    assert f"target {why}" in kept[0].name
    assert int(kept[0].read_bytes()) in ({4, 9} if check is _late else {7})


def test_totals_of_several_runs_add_up(tmp_path):
    for seed in (1, 2):
        found = {"target": (fuzz.Counter({"accepted": 3, "ValueError": 4}), 0.5)}
        totals = fuzz.add(tmp_path / "fuzz.json", seed, found)
    assert (totals["inputs"], totals["seeds"], totals["bugs"]) == (14, [1, 2], 0)
    assert totals["targets"]["target"]["outcomes"] == {"ValueError": 8, "accepted": 6}
