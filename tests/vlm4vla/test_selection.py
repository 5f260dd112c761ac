"""Best over checkpoints and horizons, and its confirmation."""

import numpy as np
import pytest

from vlm4vla.selection import Place, confirmation_states, score, select, stratified


def cell(**rates):
    """24 states of each task, as many won as said."""
    return {task: {i: float(i < won) for i in range(24)} for task, won in rates.items()}


def fresh(**rates):
    return {task: {i + 24: v for i, v in states.items()} for task, states in cell(**rates).items()}


CELLS = {
    Place(5_000, 4): cell(carrot=5, cube=0),
    Place(10_000, 4): cell(carrot=12, cube=2),
    Place(10_000, 2): cell(carrot=14, cube=0),
    Place(15_000, 4): cell(carrot=12, cube=2),
}


def test_the_best_wins_and_of_equals_the_earlier_and_longer():
    found = select(CELLS, fresh(carrot=10, cube=1))
    assert found.winner == Place(10_000, 4)
    assert found.of == 4
    assert found.best.value == pytest.approx(14 / 48)
    assert found.confirmed.value == pytest.approx(11 / 48)
    assert select(CELLS).confirmed is None


def test_the_score_is_the_mean_of_tasks_whatever_their_sizes():
    assert score({"a": {0: 1.0}, "b": dict.fromkeys(range(9), 0.0)}) == 0.5


def test_what_took_part_confirms_nothing():
    with pytest.raises(ValueError, match="carrot #0 took part"):
        select(CELLS, cell(carrot=10, cube=1))
    with pytest.raises(ValueError, match="all of them"):
        select(CELLS, fresh(carrot=10))


def test_cells_on_other_states_are_not_compared():
    with pytest.raises(ValueError, match="same states"):
        select({Place(1, 1): cell(a=3), Place(2, 1): fresh(a=3)})
    with pytest.raises(ValueError, match="same states"):
        select({})


def test_intervals_cover_and_states_give_the_width_asked():
    rates, rng = np.array([0.2, 0.95, 0.8, 0.02]), np.random.default_rng(0)
    covered, draws = 0, 400
    for _ in range(draws):
        wins = rng.random((4, 24)) < rates[:, None]
        made = stratified({str(k): dict(enumerate(map(float, won))) for k, won in enumerate(wins)})
        covered += made.low <= rates.mean() <= made.high
    assert covered / draws > 0.93
    wanted = confirmation_states(0.05, cell(a=5, b=23, c=19, d=0))
    outcomes = {t: dict.fromkeys(range(wanted), 0.0) for t in "abcd"}
    for task, rate in zip("abcd", (5 / 24, 23 / 24, 19 / 24, 0), strict=True):
        outcomes[task] |= dict.fromkeys(range(round(rate * wanted)), 1.0)
    made = stratified(outcomes)
    assert (made.high - made.low) / 2 == pytest.approx(0.05, abs=0.004)


def test_a_perfect_task_is_not_certain():
    made = stratified(cell(a=24))
    assert made.low < 0.95
    assert confirmation_states(0.05, cell(a=24)) > 24


@pytest.mark.parametrize("width", [0, 1, -0.1])
def test_impossible_widths(width):
    with pytest.raises(ValueError, match="between 0 and 1"):
        confirmation_states(width, cell(a=1))
