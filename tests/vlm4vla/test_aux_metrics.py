"""Scores of answers, by hand."""

import pytest

from vlm4vla.aux.metrics import METRICS, exact, in_region, number, points, relative_accuracy
from vlm4vla.aux.samples import KINDS

BOX = (0.4, 0.4, 0.6, 0.6)


def test_every_kind_has_a_metric():
    assert set(METRICS) == set(KINDS)


def test_points_of_a_text():
    assert points("[(0.5, 0.25), (1, 0)]") == [(0.5, 0.25), (1.0, 0.0)]
    assert points("0 . 4 3 , 0 . 7 1") == [(0.43, 0.71)]
    assert points("in the corner") == []
    assert points("4 3 , 0 7") == [(0.43, 0.07)]
    assert points("[(50, 25), (1, 0)]") == [(0.5, 0.25), (0.01, 0.0)]


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("[(0.5, 0.5)]", 1.0),
        ("[(0.5, 0.5), (0.1, 0.5)]", 0.5),
        ("[(0.41, 0.41), (0.59, 0.59), (0.61, 0.5), (0.5, 0.39)]", 0.5),
        ("[(0.7, 0.5)]", 0.0),
        ("nowhere", 0.0),
    ],
)
def test_share_of_points_inside_the_region(said, score):
    assert in_region(said, "", [BOX]) == score


def test_without_a_region_the_true_points_span_one():
    truth = "[(0.2, 0.2), (0.4, 0.3)]"
    assert in_region("(0.3, 0.25)", truth) == 1
    assert in_region("(0.41, 0.25)", truth) == 0
    assert in_region("(0.54, 0.5)", "(0.5, 0.5)") == 1  # a single point counts 0.05 around
    assert in_region("(0.56, 0.5)", "(0.5, 0.5)") == 0


@pytest.mark.parametrize(
    ("said", "truth", "score"),
    [
        ("10", "10", 1.0),
        ("9.4 metres", "10", 0.9),  # 6% off: all thresholds but 0.95
        ("8", "10", 0.6),  # 20% off: 0.5, 0.55 .. 0.75
        ("5", "10", 0.0),
        ("20", "10", 0.0),
        ("0", "0", 1.0),
        ("1", "0", 0.0),
        ("many", "10", 0.0),
    ],
)
def test_mean_relative_accuracy(said, truth, score):
    assert relative_accuracy(said, truth) == pytest.approx(score)


def test_numbers_that_a_decoder_spread():
    assert number("1 . 5") == 1.5
    assert number("about 2 metres") == 2


@pytest.mark.parametrize(
    ("said", "truth", "score"),
    [("B", "B", 1), ("B. No", "B", 1), ("(b) no", "B", 1), ("Left.", "left", 1), ("A", "B", 0)],
)
def test_exact_match_of_choices(said, truth, score):
    assert exact(said, truth) == score
