"""Ours beside the paper's: published intervals, the protocol's selection, honest statuses."""

import numpy as np
import pytest
from statsmodels.stats.proportion import confint_proportions_2indep

from envs.benchmarks import benchmark
from vlm4vla.analysis import Estimate, wilson
from vlm4vla.audit import paper_tables
from vlm4vla.compare import (
    MEASURED,
    MISSING,
    REDUCED,
    UNFINISHED,
    beyond_noise,
    difference,
    p_value,
    paired_effect,
    printed,
    score,
)
from vlm4vla.selection import Place


def rate(successes, trials):
    return Estimate(successes / trials, *wilson(successes, trials))


def test_difference_as_published():
    """Newcombe (1998), Table II: 56/70 - 48/80 by method 10."""
    gap = difference(rate(56, 70), rate(48, 80))
    assert gap == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


@pytest.mark.parametrize("counts", [(9, 10, 3, 10), (0, 24, 7, 96), (250, 500, 210, 500)])
def test_difference_against_statsmodels(counts):
    a, n, b, m = counts
    theirs = confint_proportions_2indep(a, n, b, m, method="newcomb", compare="diff")
    gap = difference(rate(a, n), rate(b, m))
    assert (gap.low, gap.high) == pytest.approx(theirs)


def test_noise_is_judged_over_the_whole_table():
    assert p_value(Estimate(1.959963984540054, 0.0, 4.0)) == pytest.approx(0.05)
    assert p_value(Estimate(0.0, 0.0, 0.0)) == 1.0
    assert beyond_noise([0.04]) == [True]
    assert beyond_noise([0.04, 0.04]) == [False, False]
    assert beyond_noise([]) == []


def test_the_papers_own_noise():
    tables = paper_tables()
    length = printed(tables["table1_calvin"], "qwen2.5vl-3b", "avg_len", "calvin")
    # 17.812 - 3.856²: the variance of the printed rates
    assert length.high - length.value == pytest.approx(1.96 * np.sqrt(2.943 / 1000), abs=1e-3)
    bounded = printed(tables["table5_lr_calvin"], "qwen2.5vl-3b", "2e-5", "calvin")
    assert bounded.value == 3.856 and bounded.high > length.high
    spoon = printed(tables["table2_simpler_libero"], "kosmos-2", "simpler", "simpler")
    assert spoon.low == pytest.approx(100 * wilson(58, 96)[0])
    quoted = printed(tables["table2_simpler_libero"], "openvla", "libero10", "libero_10")
    assert quoted.low < 53.7 < quoted.high


SIMPLER = benchmark("simpler")
PLACES = [Place(s, h) for s in SIMPLER.recipe.checkpoints for h in SIMPLER.horizons]


def played(share, states=24, first=0, tasks=SIMPLER.tasks):
    return {t: {first + i: float(i < share * states) for i in range(states)} for t in tasks}


def test_the_whole_protocol_is_measured_and_confirmed():
    cells = {place: played(0.25) for place in PLACES}
    winner = {t: {**played(0.5)[t], **played(0.25, first=24)[t]} for t in SIMPLER.tasks}
    found = score(SIMPLER, {**cells, Place(20000, 2): winner})
    assert (found.status, found.note, found.of) == (MEASURED, "", 30)
    assert found.place == Place(20000, 2) and found.trials == 96
    assert found.best.value == 50.0 and found.confirmed.value == 25.0


def test_cells_that_were_stopped_early_do_not_compete():
    cells = {place: played(0.25, states=8) for place in PLACES}
    cells |= {Place(20000, 2): played(0.5), Place(20000, 4): played(0.4)}
    found = score(SIMPLER, cells)
    assert (found.status, found.note, found.of) == (MEASURED, "28 of 30 cells stopped early", 2)
    assert found.place == Place(20000, 2) and found.trials == 96 and found.best.value == 50.0
    found = score(SIMPLER, {place: cells[place] for place in PLACES[:12]})
    assert found.status == REDUCED
    assert found.note == "12 of 30 checkpoint × horizon cells, 10 of 12 cells stopped early"


def test_liberos_confirmation_is_found_where_the_contest_plays_it():
    row = benchmark("libero_10")
    first = row.confirmation_from
    states = {**dict.fromkeys(range(50), 1.0), **{first + i: float(i < 5) for i in range(20)}}
    demonstrated = dict.fromkeys(range(row.demonstrations_from, row.demonstrations_from + 9), 0.0)
    cell = {task: {**states, **demonstrated} for task in row.tasks}
    found = score(row, {Place(50000, 4): cell})
    assert found.best.value == 100.0 and found.confirmed.value == 25.0


def test_less_than_the_protocol_says_so():
    found = score(SIMPLER, {Place(50000, 4): played(0.5, states=10, tasks=SIMPLER.tasks[:2])})
    assert found.status == REDUCED and found.best.value == 50.0
    assert (
        found.note == "10 of 24 trials per task, 2 of 4 tasks, 1 of 30 checkpoint × horizon cells"
    )


@pytest.mark.parametrize("other", [played(0.75, states=20), played(0.1, states=20, first=4)])
def test_no_best_among_cells_of_different_states(other):
    """One is ahead where both were played; the other was played on states of its own."""
    whole = {task: dict(list(states.items())[:23]) for task, states in played(0.5).items()}
    found = score(SIMPLER, {Place(50000, 4): whole, Place(50000, 2): other})
    assert found.status == UNFINISHED and found.best is None and found.note
    assert score(SIMPLER, {}).status == MISSING
    assert score(SIMPLER, {Place(1, 1): played(0.5, first=24)}).status == MISSING


def test_chains_are_in_subtasks():
    row = benchmark("calvin")
    found = score(row, {Place(30000, 5): {"sequence": {i: (i % 6) / 5 for i in range(600)}}})
    assert found.best.value == pytest.approx(2.5)


def test_paired_effects():
    a, b = {"t": {i: float(i < 60) for i in range(100)}}, {"t": dict.fromkeys(range(200), 0.0)}
    found = paired_effect("simpler", a, b)
    assert found.difference.value == 60.0 and found.pairs == 100
    assert found.p == pytest.approx(2 * 0.5**60)
    chain = paired_effect("calvin", {"s": {0: 1.0, 1: 0.4}}, {"s": {0: 0.8, 1: 0.4}})
    assert chain.difference.value == pytest.approx(0.5)
    with pytest.raises(ValueError, match="share no"):
        paired_effect("simpler", a, {"other": {0: 1.0}})
