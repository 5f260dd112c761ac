"""Stopping hopeless cells: the error stays below what is stated, and episodes are saved."""

import numpy as np
import pytest

from tests.bench.bench_sequential import ERROR, SHAPES, measure
from tests.bench.racing import full_winner, race
from vlm4vla.sequential import bound, hopeless, log_capital, order


@pytest.mark.parametrize("gap", [0, 1])
@pytest.mark.parametrize("discordant", [6, 30, 60])
def test_a_cell_that_does_not_lose_is_stopped_no_oftener_than_stated(gap, discordant):
    """The hardest case for the bound: the winner ahead by a hair, over random orders."""
    rng, states, error = np.random.default_rng(discordant), 60, 0.2
    won = discordant // 2
    differences = np.array([1.0] * (won + gap) + [-1.0] * won + [0.0] * 60)[:states]
    assert differences.sum() >= 0
    orders = rng.permuted(np.tile(differences, (3000, 1)), axis=1)
    stopped = (log_capital(orders, states) >= bound(error, rivals=1)).any(axis=1).mean()
    assert stopped <= error + 0.02


def test_the_capital_is_a_fair_game_under_a_tie():
    """Its mean over all orders is at most 1 at any time, and for a tie it is 1."""
    rng = np.random.default_rng(0)
    orders = rng.permuted(np.tile([1.0, -1.0, 0.0, 0.0] * 5, (20_000, 1)), axis=1)
    capital = np.exp(log_capital(orders, 20)[:, [0, 4, 9]]).mean(axis=0)
    assert capital == pytest.approx(1, abs=0.05)


def test_what_cannot_be_caught_up_is_certain_and_what_can_is_not():
    behind = np.array([-1.0] * 6)
    assert log_capital(behind, 11)[-1] == np.inf
    assert log_capital(behind, 12)[-1] < np.inf  # six states are left: it may still tie


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("name", "least"), [("bridge", 0.15), ("bridge, all equal", 0.0)])
def test_simulated_studies_choose_the_same_winner(name, least, streamed):
    made = measure(SHAPES[name], studies=40, seed=1, streamed=streamed)
    assert made["cells"] >= 1000
    assert made["error_rate"] <= ERROR
    assert made["episodes_saved"] > least


def test_a_race_is_what_asking_at_each_look_gives():
    rng = np.random.default_rng(3)
    scores = (rng.random((5, 80)) < np.linspace(0.1, 0.9, 5)[:, None]).astype(float)
    found = race(scores, ERROR, batch=20)
    played = dict.fromkeys(range(5), 0)
    for now in (20, 40, 60, 80):
        seen = {cell: scores[cell, : played[cell]] for cell in played}
        alive = set(played) - hopeless(seen, 80, ERROR)
        played |= dict.fromkeys(alive, now)
    assert found.played == tuple(played.values())
    assert found.winner == full_winner(scores) == 4
    assert found.saved(80) == pytest.approx(1 - sum(played.values()) / 400)


def test_cells_that_have_not_begun_make_the_bound_stricter():
    seen = {"a": [1.0] * 9, "b": [0.0] * 9}
    assert hopeless(seen, 100, 0.05) == {"b"}
    assert hopeless(seen, 100, 0.05, cells=1_000_000) == set()


def test_the_last_cell_is_never_stopped():
    """Beaten in a circle: a ahead of b at first, then b of a, whatever that is worth."""
    early, late = [1.0] * 20 + [0.0] * 40, [0.0] * 20 + [1.0] * 40
    assert hopeless({"a": early, "b": late}, 60, 0.05) != {"a", "b"}
    found = race(np.array([early, late]), 0.05)
    assert max(found.played) == 60


def test_equal_cells_keep_the_first():
    scores = np.array([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    assert race(scores, ERROR).winner == full_winner(scores) == 0


def test_the_order_is_shared_and_holds_every_state_once():
    states = order(("a", "b"), 24, seed=5)
    assert sorted(states) == [(task, i) for task in "ab" for i in range(24)]
    assert states == order(("a", "b"), 24, seed=5) != order(("a", "b"), 24, seed=6)


def test_bad_input():
    with pytest.raises(ValueError, match="between 0 and 1"):
        hopeless({"a": [1.0], "b": [0.0]}, 3, 0.0)
    with pytest.raises(ValueError, match="more outcomes than 2 cells of 1 states"):
        hopeless({"a": [1.0, 1.0], "b": [0.0]}, 1, 0.05)
    with pytest.raises(ValueError, match="more outcomes"):
        hopeless({"a": [], "b": []}, 1, 0.05, cells=1)
