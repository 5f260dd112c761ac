"""Scores and their spread over repeats, from the episodes in the ledger."""

import pytest
from vla_platform.artifacts import Checkpoint
from vla_platform.evaluation import REPEAT, Result, Wanted
from vla_platform.ledger import Ledger
from vla_platform.rows import Row
from vla_platform.spread import spread_lines, spread_of
from vla_platform.store import open_store
from vla_platform.tables import rows_of, score_table

from envs.benchmarks import benchmark
from vlm4vla.analysis import wilson

STATES, REPEATS = 4, 3


def result(digest: str) -> Result:
    wanted = Wanted(
        Checkpoint("run", 1, digest * 64), benchmark("tabletop"), 2, "f" * 64, ("reach",), STATES,
        repeats=REPEATS,
    )  # fmt: skip
    return Result(digest, "trained", wanted)


def play(ledger: Ledger, score: Result, won, most: int | None = None) -> None:
    for episode in score.wanted.episodes()[:most]:
        repeat, state = divmod(episode.seed, REPEAT)
        success = won(repeat, state)
        ledger.commit(Row(episode, success, success, success, 1, 1, 0.0, 0.0, writer=episode.key))


def test_repeats_are_told_apart_by_their_seeds(tmp_path):
    ledger = Ledger(open_store(str(tmp_path)))
    drawing, same, half = map(result, "abc")
    play(ledger, drawing, lambda repeat, state: state <= repeat)  # 1, 2 and 3 of 4
    play(ledger, same, lambda repeat, state: state == 0)
    found = spread_of(ledger, drawing)
    assert found is not None and found.rates == (0.25, 0.5, 0.75)
    assert found.deviation == pytest.approx(0.25)
    assert spread_of(ledger, half) is None
    assert spread_lines(ledger, [drawing, same, half]) == [
        "a over 3 repeats: 25, 50, 75% (standard deviation 25.0 points)",
        "b over 3 repeats: 25, 25, 25% (standard deviation 0.0 points)",
    ]


def test_a_score_is_as_wide_as_its_states_and_says_what_is_missing(tmp_path):
    ledger = Ledger(open_store(str(tmp_path)))
    whole, part, none = map(result, "abc")
    play(ledger, whole, lambda repeat, state: state <= repeat)  # 6 of 12
    play(ledger, part, lambda repeat, state: True, most=5)
    rows = rows_of(ledger, [whole, part, none], wilson)
    reach, together = rows[:2]
    assert (reach["task"], reach["successes"], reach["trials"]) == ("reach", 6, 12)
    assert (reach["low"], reach["high"]) == tuple(round(end, 4) for end in wilson(2, 4))
    assert together == reach | {"task": "all"}
    shown = score_table(rows)
    assert "50% [15, 85] 6/12\n" in shown and "6/12 (" not in shown
    assert "5/5 (7 missing)" in shown
    assert "no trials" in shown.splitlines()[-1]
