"""Statistics against published and analytic values."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from matplotlib import cbook
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_confint, proportion_effectsize

from vlm4vla import analysis
from vlm4vla.analysis import (
    across_trainings,
    best_of,
    box,
    chain_metrics,
    compare,
    correlate,
    holm,
    mcnemar,
    paired_bootstrap,
    pairs_to_tell_apart,
    success_rate,
    trials_to_tell_apart,
    wilson,
    winners_inflation,
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


@pytest.mark.parametrize("counts", [(0, 0), (3, 2), (-1, 5)])
def test_what_is_no_rate_is_refused(counts: tuple[int, int]):
    with pytest.raises(ValueError, match="not a rate"):
        wilson(*counts)


# Chains


def test_chain_rates_and_length_by_hand():
    metrics = chain_metrics([5, 5, 3, 1, 0, 0, 2, 4], length=5)
    assert [rate.value for rate in metrics.rates] == [6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8]
    assert metrics.length.value == 20 / 8 and metrics.sequences == 8


@given(st.lists(st.integers(0, 5), min_size=1, max_size=50))
def test_chain_rates_never_increase_and_add_up(completed: list[int]):
    metrics = chain_metrics(completed)
    values = [rate.value for rate in metrics.rates]
    assert values == sorted(values, reverse=True)
    assert metrics.length.value == pytest.approx(sum(values)) == pytest.approx(np.mean(completed))
    for estimate in (*metrics.rates, metrics.length):
        assert estimate.low <= estimate.value + 1e-9 and estimate.value - 1e-9 <= estimate.high


def test_chain_intervals_match_theory():
    completed = np.random.default_rng(0).integers(0, 6, 1000)
    metrics = chain_metrics(list(completed))
    half = 1.96 * completed.std() / math.sqrt(1000)
    assert metrics.length.high - metrics.length.value == pytest.approx(half, rel=0.05)
    assert metrics.length.value - metrics.length.low == pytest.approx(half, rel=0.05)
    assert metrics == chain_metrics(list(completed)), "the same digits every time"


@pytest.mark.parametrize("completed", [[], [6], [-1]])
def test_impossible_chains_are_refused(completed: list[int]):
    with pytest.raises(ValueError, match=r"chains need|negative"):
        chain_metrics(completed)


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


def test_success_rate_of_rows():
    assert success_rate(cell({0: True, 1: False, 2: True, 3: True})).value == 0.75
    with pytest.raises(ValueError, match="not a rate"):
        success_rate(cell({}))


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


def test_sample_sizes_as_published():
    assert trials_to_tell_apart(0.50, 0.75, power=0.9) == 77  # R: power.prop.test, 76.7
    assert trials_to_tell_apart(0.5, 0.6) == trials_to_tell_apart(0.6, 0.5) == 388
    with pytest.raises(ValueError, match="equal"):
        trials_to_tell_apart(0.5, 0.5)


def test_enough_pairs_are_enough():
    """Simulated: with the advised number of pairs McNemar finds it in about 80% of studies."""
    pairs = pairs_to_tell_apart(30, 15, 200)
    draws = np.random.default_rng(0).multinomial(pairs, [0.15, 0.075, 0.775], 400)
    found = np.mean([mcnemar(int(a), int(b)) < 0.05 for a, b, _ in draws])
    assert 0.72 < found < 0.88
    with pytest.raises(ValueError, match="equal"):
        pairs_to_tell_apart(5, 5, 100)


# Selection, seeds, boxes


def test_winners_inflation():
    assert winners_inflation(1, 96, 0.5) == pytest.approx(0, abs=1e-12)
    assert winners_inflation(2, 1, 0.5) == pytest.approx(0.25)
    # Bridge's 30 scores of 96 trials: about two standard deviations of 5 points.
    assert winners_inflation(30, 96, 0.5) == pytest.approx(0.104, abs=0.003)


def test_best_of_reports_both_numbers():
    found = best_of({"10k/4": (40, 96), "20k/4": (52, 96), "20k/1": (52, 96)}, (45, 96))
    assert found.winner == "20k/4" and found.best.value == 52 / 96
    assert found.confirmed is not None and found.confirmed.value == 45 / 96
    assert 0.03 < found.inflation < 0.06
    assert best_of({"only": (3, 4)}).confirmed is None


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


# Correlation


def test_correlation_of_anscombes_first_set():
    x = [10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5]
    y = [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68]
    found = correlate(x, y)
    assert found.r == pytest.approx((0.8164205, 0.4243912, 0.9506933), abs=1e-6)  # R: cor.test
    assert found.r2 == pytest.approx(0.6665, abs=1e-4)
    assert (found.slope, found.intercept) == pytest.approx((0.5001, 3.0001), abs=1e-4)


def test_figure_3_on_points_with_a_known_r():
    rng = np.random.default_rng(0)
    x = rng.normal(size=9)
    noise = rng.normal(size=9)
    noise -= np.polyval(np.polyfit(x, noise, 1), x)  # orthogonal to x
    scale = np.std(x) / np.std(noise) * math.sqrt(1 / 0.839**2 - 1)
    found = correlate(list(x), list(x + scale * noise))
    assert found.r.value == pytest.approx(0.839) and found.r2 == pytest.approx(0.704, abs=1e-3)


def test_a_perfect_line_and_too_few_points():
    found = correlate([1, 2, 3, 4], [2, 4, 6, 8])
    assert found.r.value == pytest.approx(1) and found.r.high == pytest.approx(1)
    for x, y in (([1, 2, 3], [1, 2, 3]), ([1, 1, 1, 1], [1, 2, 3, 4])):
        with pytest.raises(ValueError, match="four or more points"):
            correlate(x, y)


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


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=5, max_size=20))
def test_correlation_against_scipy(points: list[tuple[float, float]]):
    x, y = (list(values) for values in zip(*points, strict=True))
    assume(np.std(x) > 1e-3 and np.std(y) > 1e-3)
    found, theirs, line = correlate(x, y), stats.pearsonr(x, y), stats.linregress(x, y)
    assume(abs(theirs.statistic) < 0.999999)
    interval = theirs.confidence_interval()
    expected = (theirs.statistic, interval.low, interval.high)
    assert tuple(found.r) == pytest.approx(expected, abs=1e-6)
    fitted = (line.slope, line.intercept)
    assert (found.slope, found.intercept) == pytest.approx(fitted, abs=1e-6)


def test_paired_bootstrap_against_scipy():
    a, b = np.repeat([1, 1, 0, 0], (40, 30, 14, 16)), np.repeat([1, 0, 1, 0], (40, 30, 14, 16))
    theirs = stats.bootstrap(
        (a - b,), np.mean, method="percentile", n_resamples=20_000, rng=0
    ).confidence_interval
    found = paired_bootstrap(30, 14, 100)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.011)


def test_sample_size_against_statsmodels():
    effect = proportion_effectsize(0.75, 0.5)
    theirs = NormalIndPower().solve_power(effect, alpha=0.05, power=0.8)
    assert trials_to_tell_apart(0.5, 0.75) == pytest.approx(theirs, rel=0.06)


def test_boxes_against_matplotlib():
    values = [*np.random.default_rng(0).normal(size=30).tolist(), 9.0]
    (theirs,) = cbook.boxplot_stats(values)
    found = box(values)
    names = ("whislo", "q1", "med", "q3", "whishi")
    assert found[:5] == pytest.approx([theirs[name] for name in names])
    assert list(found.outliers) == pytest.approx(sorted(theirs["fliers"]))


def test_the_module_needs_no_torch():
    assert not {"torch", "ray"} & set(vars(analysis))


def test_the_best_of_cells_with_thousands_of_trials():
    """The binomial's coefficients are no floats from 1,030 trials on."""
    small, large = winners_inflation(4, 1000, 0.5), winners_inflation(4, 4000, 0.5)
    assert large == pytest.approx(small / 2, rel=0.01)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: mcnemar(-1, 5),
        lambda: holm([0.1, float("nan")]),
        lambda: box([]),
        lambda: box([1.0, float("inf")]),
        lambda: best_of({}),
        lambda: best_of({"a": (3, 2)}),
        lambda: chain_metrics([1.5, 2.0]),
        lambda: chain_metrics([0.0, 5.0]),
        lambda: correlate([1, 2, 3, float("nan")], [1, 2, 3, 4]),
        lambda: across_trainings([[1.0], []]),
        lambda: trials_to_tell_apart(0.5, 1.5),
        lambda: trials_to_tell_apart(2e-313, 0.0),
        lambda: across_trainings([[-1e308, 1.0], [-1e308]]),
    ],
)
def test_no_figure_is_made_of_nothing(ask):
    with pytest.raises(ValueError, match=r"not|needs?|lie"):
        ask()
