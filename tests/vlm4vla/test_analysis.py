"""Statistics against published and analytic values."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import cbook
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from vlm4vla import analysis
from vlm4vla.analysis import (
    across_trainings,
    box,
    compare,
    holm,
    mcnemar,
    paired_bootstrap,
    pairs_to_tell_apart,
    wilson,
)

COUNTS = st.integers(0, 60)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # Newcombe (1998), Table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_as_published(successes: int, trials: int, low: float, high: float):
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_rate_and_mirrors(counts: tuple[int, int]):
    successes, trials = counts
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12 and successes / trials - 1e-12 <= high <= 1
    assert wilson(trials - successes, trials) == pytest.approx((1 - high, 1 - low))


def test_repeats_of_a_state_are_no_further_evidence():
    assert wilson(285, 300, 100) == pytest.approx(wilson(95, 100))
    assert wilson(270, 300, 300) == wilson(270, 300)


@pytest.mark.parametrize("counts", [(0, 0), (3, 2), (-1, 5)])
def test_what_is_no_rate_is_refused(counts: tuple[int, int]):
    with pytest.raises(ValueError, match="not a rate"):
        wilson(*counts)


# Pairs


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (1, 9, 22 / 1024),
        (0, 6, 2 / 64),
        (121, 59, 4.434446e-06),  # statsmodels' published example
    ],
)
def test_mcnemar(only_a: int, only_b: int, p: float):
    assert mcnemar(only_a, only_b) == pytest.approx(p, rel=1e-5) == mcnemar(only_b, only_a)


@given(COUNTS, COUNTS)
def test_mcnemar_is_a_probability(only_a: int, only_b: int):
    assert 0 < mcnemar(only_a, only_b) <= 1


def test_paired_bootstrap_matches_theory():
    found = paired_bootstrap(60, 30, 500)
    spread = 1.96 * math.sqrt((90 / 500 - 0.06**2) / 500)
    assert found.value == pytest.approx(0.06)
    assert found.high - found.low == pytest.approx(2 * spread, rel=0.05)


def cell(outcomes: dict[int, bool], task: str = "t") -> pa.Table:
    size = len(outcomes)
    columns = {
        "task": [task] * size,
        "initial_state": list(outcomes),
        "seed": [0] * size,
        "instruction": ["push"] * size,
        "success": list(outcomes.values()),
    }
    return pa.table(columns)


def test_compare_pairs_by_episode():
    a = cell({0: True, 1: True, 2: False, 3: False, 4: True, 9: True})
    b = cell({4: False, 3: True, 2: False, 1: True, 0: False, 7: True})
    found = compare(a, b)
    assert (found.both, found.only_a, found.only_b, found.neither) == (1, 2, 1, 1)
    assert found.difference.value == pytest.approx(1 / 5) and found.p == 1.0
    assert found.unpaired == 2


def test_compare_refuses_what_cannot_be_paired():
    with pytest.raises(ValueError, match="share no episode"):
        compare(cell({0: True}), cell({1: True}))
    twice = pa.concat_tables([cell({0: True}), cell({0: False})])
    with pytest.raises(ValueError, match="twice"):
        compare(twice, cell({0: True}))


def test_holm_as_published():
    """The worked example of the Wikipedia article; R's p.adjust agrees."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.5, 0.9]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_keeps_the_order_and_never_helps(p_values: list[float]):
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [adjusted[i] for i in order] == sorted(adjusted)


def test_enough_pairs_are_enough():
    """Simulated: with the advised number of pairs McNemar finds it in about 80% of studies."""
    pairs = pairs_to_tell_apart(30, 15, 200)
    draws = np.random.default_rng(0).multinomial(pairs, [0.15, 0.075, 0.775], 400)
    found = np.mean([mcnemar(int(a), int(b)) < 0.05 for a, b, _ in draws])
    assert 0.72 < found < 0.88
    with pytest.raises(ValueError, match="equal"):
        pairs_to_tell_apart(5, 5, 100)


# Seeds, boxes


def trainings(*won):
    return [[1.0] * each + [0.0] * (100 - each) for each in won]


def test_seeds_widen_the_interval():
    alike = across_trainings(trainings(50, 50, 50, 50, 50))
    apart = across_trainings(trainings(30, 40, 50, 60, 70))
    assert alike.value == apart.value == 0.5
    assert alike.high - alike.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(500), rel=0.06)
    assert apart.high - apart.low > 1.5 * (alike.high - alike.low)


def test_across_trainings_takes_chains():
    rng = np.random.default_rng(0)
    chains = [rng.binomial(5, rate, size) for rate, size in ((0.4, 800), (0.5, 1000), (0.6, 500))]
    found = across_trainings(chains)
    means = [float(chain.mean()) for chain in chains]
    assert found.value == pytest.approx(np.mean(means))
    # Trainings differ far more than 500 chains of one could: the interval is theirs.
    draws = np.random.default_rng(1).choice(means, (10_000, 3)).mean(1)
    assert found.high - found.low == pytest.approx(
        np.ptp(np.quantile(draws, (0.025, 0.975))), rel=0.1
    )


def test_box_as_tukey_draws_it():
    found = box([1, 2, 3, 4, 5, 6, 7, 8, 100])
    assert found == (1, 3, 5, 7, 8, (100,))


# Other people's code as oracle


@pytest.mark.parametrize(("successes", "trials"), [(0, 24), (5, 24), (37, 96), (250, 500)])
def test_wilson_against_scipy_and_statsmodels(successes: int, trials: int):
    expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)
    theirs = proportion_confint(successes, trials, method="wilson")
    assert wilson(successes, trials) == pytest.approx(theirs, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(COUNTS, COUNTS)
def test_mcnemar_against_scipy_and_statsmodels(only_a: int, only_b: int):
    theirs = statsmodels_mcnemar([[7, only_a], [only_b, 9]], exact=True).pvalue
    assert mcnemar(only_a, only_b) == pytest.approx(theirs)
    if only_a + only_b:
        expected = stats.binomtest(only_a, only_a + only_b).pvalue
        assert mcnemar(only_a, only_b) == pytest.approx(expected)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=12))
def test_holm_against_statsmodels(p_values: list[float]):
    expected = multipletests(p_values, method="holm")[1]
    assert holm(p_values) == pytest.approx(list(expected))


def test_paired_bootstrap_against_scipy():
    a, b = np.repeat([1, 1, 0, 0], (40, 30, 14, 16)), np.repeat([1, 0, 1, 0], (40, 30, 14, 16))
    theirs = stats.bootstrap(
        (a - b,), np.mean, method="percentile", n_resamples=20_000, rng=0
    ).confidence_interval
    found = paired_bootstrap(30, 14, 100)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.011)


def test_boxes_against_matplotlib():
    values = [*np.random.default_rng(0).normal(size=30).tolist(), 9.0]
    (theirs,) = cbook.boxplot_stats(values)
    found = box(values)
    names = ("whislo", "q1", "med", "q3", "whishi")
    assert found[:5] == pytest.approx([theirs[name] for name in names])
    assert list(found.outliers) == pytest.approx(sorted(theirs["fliers"]))


def test_the_module_needs_no_torch():
    assert not {"torch", "ray"} & set(vars(analysis))


@pytest.mark.parametrize(
    "ask",
    [
        lambda: mcnemar(-1, 5),
        lambda: holm([0.1, float("nan")]),
        lambda: box([]),
        lambda: box([1.0, float("inf")]),
        lambda: across_trainings([[1.0], []]),
        lambda: across_trainings([[-1e308, 1.0], [-1e308]]),
    ],
)
def test_no_figure_is_made_of_nothing(ask):
    with pytest.raises(ValueError, match=r"not|needs?|lie"):
        ask()
