"""Scores without a truth, against numbers whose scores are known."""

import numpy as np
import pytest

from assim_lib.own.innovations import InnovationSums, innovation_scores


def drawn(cycles=4000, sites=5, colour=0.0):
    random = np.random.RandomState(0).standard_normal((cycles, 1, sites))
    for k in range(1, cycles):
        random[k] = colour * random[k - 1] + np.sqrt(1 - colour**2) * random[k]
    return random


def test_white_innovations_of_the_expected_size():
    expected = np.broadcast_to([1.0, 2.0, 3.0, 4.0, 5.0], (4000, 1, 5))
    scores = innovation_scores(expected * drawn(), expected)
    assert scores.expected == pytest.approx(11**0.5)
    assert scores.rmse == pytest.approx(11**0.5, rel=0.02)
    assert scores.chi2 == pytest.approx(1, abs=0.03)
    assert scores.autocorrelation == pytest.approx(0, abs=0.02)
    assert (scores.numbers, scores.cycles) == (20_000, 4000)
    half = innovation_scores(expected * drawn(), expected / 2)
    assert half.chi2 == pytest.approx(4 * scores.chi2)


def test_colour_is_found_also_where_a_place_is_seen_now_and_then():
    coloured = np.repeat(drawn(colour=0.6), 3, axis=0)
    coloured[np.arange(len(coloured)) % 3 > 0] = np.nan
    scores = innovation_scores(coloured, np.ones_like(coloured))
    assert scores.autocorrelation == pytest.approx(0.6, abs=0.02)
    assert scores.cycles == 4000


def test_what_is_not_known_or_not_there():
    nothing = innovation_scores(np.full((3, 1, 2), np.nan), np.ones((3, 1, 2)))
    assert nothing.numbers == 0
    assert "no number is left" in str(nothing)
    assert innovation_scores(np.ones((0, 1, 2)), np.ones((0, 1, 2))).numbers == 0
    single = innovation_scores(drawn(), np.full((4000, 1, 5), np.nan))
    assert np.isnan([single.expected, single.chi2]).all()
    assert single.rmse == pytest.approx(1, rel=0.02)
    lost = drawn()
    lost[7] = np.inf
    of_lost = innovation_scores(lost, np.ones_like(lost))
    assert of_lost.rmse == np.inf
    assert str(of_lost) == "no scores: a forecast of 20000 numbers in 4000 cycles is not finite"


def test_parts_add_up_to_the_whole():
    coloured = drawn(300, colour=0.6)
    coloured[np.random.RandomState(1).random_sample(coloured.shape) < 0.5] = np.nan
    expected = np.full_like(coloured, 2.0)
    sums = InnovationSums()
    for first, last in ((0, 1), (1, 130), (130, 300)):
        sums.add(coloured[first:last], expected[first:last])
    whole = innovation_scores(coloured, expected)
    assert sums.scores.as_dict() == pytest.approx(whole.as_dict(), rel=1e-12)
