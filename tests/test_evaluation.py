"""Scores by their formulas, intervals that hold what they promise, and one criterion for a lost truth."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare

from assim_lib.evaluation import (
    BLOCK,
    LOST_AFTER,
    LOST_AT,
    Scores,
    crps,
    error_by_age,
    evaluate,
    interval,
    lost_truth,
    paired_difference,
    ranks,
    rmse,
    spread,
    summarize,
)

BATCHES = [(), (64,), (2, 3)]


def case(batch=(), members=5, channels=2, sites=4):
    random = np.random.RandomState(0)
    return random.standard_normal((*batch, members, channels, sites)), random.standard_normal((*batch, channels, sites))


def pairwise_crps(ensemble, truth):
    pairs = np.abs(ensemble[:, None] - ensemble[None]).mean((0, 1))
    return (np.abs(ensemble - truth).mean(0) - pairs / 2).mean()


# ---- formulas


def test_rmse_and_spread_by_hand():
    ensemble = np.array([[[1.0, 2.0]], [[3.0, 6.0]]])  # means 2 and 4, variances 2 and 8
    assert rmse(ensemble, np.array([[5.0, 8.0]])) == pytest.approx(np.sqrt((9 + 16) / 2))
    assert spread(ensemble) == pytest.approx(np.sqrt((2 + 8) / 2))


@pytest.mark.parametrize("batch", BATCHES)
def test_scores_of_a_batch_are_those_of_its_trajectories(batch):
    ensemble, truth = case(batch)
    single, target = case(batch, members=1)
    absolute = np.abs(single[..., 0, :, :] - target).mean((-2, -1))
    for ours, score in (
        (rmse(ensemble, truth), lambda e, t: np.sqrt(((e.mean(0) - t) ** 2).mean())),
        (spread(ensemble), lambda e, t: np.sqrt(e.var(0, ddof=1).mean())),
        (crps(ensemble, truth), pairwise_crps),
    ):
        expected = [score(ensemble[i], truth[i]) for i in np.ndindex(batch)]
        np.testing.assert_allclose(ours, np.reshape(expected, batch), rtol=1e-12)
    np.testing.assert_array_equal(spread(single), np.zeros(batch))
    np.testing.assert_allclose(crps(single, target), absolute, rtol=1e-12)


def test_in_a_reliable_ensemble_spread_is_the_error():
    ensemble, truth = case((50,), 10, channels=1, sites=4000)
    # The mean of finitely many members has an error of its own.
    assert rmse(ensemble, truth).mean() == pytest.approx(np.sqrt(1 + 1 / 10), rel=0.01)
    assert spread(ensemble).mean() == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("members", [1, 9])
def test_ranks_are_flat_for_a_reliable_ensemble_and_show_what_is_wrong(members):
    ensemble, truth = case((100,), members, sites=40)
    frequency = ranks(ensemble, truth)
    assert frequency.shape == (members + 1,)
    assert frequency.sum() == pytest.approx(1)
    assert chisquare(truth.size * frequency).pvalue > 0.01
    assert ranks(ensemble + 100, truth).tolist() == [1.0] + members * [0.0]
    timid = ranks(0.5 * ensemble, truth)
    assert members == 1 or min(timid[0], timid[-1]) > 2 * timid[1:-1].max()


# ---- confidence intervals


def ar1(series, cycles, memory, mean=0.3, seed=11):
    """Independent stationary autoregressive series with that memory, in cycles, and that mean."""
    random, decay = np.random.RandomState(seed), np.exp(-1 / memory)
    x = np.empty((series, cycles))
    x[:, 0] = random.standard_normal(series)
    for k in range(1, cycles):
        x[:, k] = decay * x[:, k - 1] + np.sqrt(1 - decay**2) * random.standard_normal(series)
    return mean + 0.1 * x


@pytest.mark.parametrize(
    ("cycles", "memory", "least"),
    [(5000, 10, 0.93), (5000, 100, 0.9), (2000, 50, 0.88), (500, 10, 0.92), (299, 1, 0.92)],
)
def test_the_interval_covers_the_true_mean_of_a_correlated_series(cycles, memory, least):
    """Few blocks, and blocks that remember each other, included."""
    series = ar1(1000, cycles, memory)
    low, high = np.array([interval(s) for s in series]).T
    assert least <= ((low < 0.3) & (high > 0.3)).mean() <= 0.98
    assert ((low < series.mean(1)) & (series.mean(1) < high)).all()
    # What makes blocks necessary: as if cycles were independent, the interval would be far too narrow.
    half = 1.96 * series.std(1) / np.sqrt(cycles)
    assert memory == 1 or (np.abs(series.mean(1) - 0.3) < half).mean() < 0.6


@pytest.mark.parametrize("cycles", [0, 1, BLOCK, 2 * BLOCK - 1])
def test_too_short_a_series_is_one_sentence(cycles):
    sentence = rf"^{cycles} cycles are too few for a confidence interval: at least {2 * BLOCK} are needed\.$"
    for of in (interval, lambda series: paired_difference(series, series)):
        with pytest.raises(ValueError, match=sentence):
            of(np.zeros(cycles))
    interval(np.random.RandomState(0).standard_normal(2 * BLOCK))


def test_a_difference_on_the_same_observations_is_known_better_than_its_parts():
    """What is hard is hard for both: a difference that the two intervals hide is seen by the paired one."""
    (common,), ours, theirs = ar1(1, 5000, 10), *ar1(2, 5000, 10, mean=0.0, seed=5) / 20
    ours, theirs = common + ours, common + theirs + 0.003
    mean, low, high = paired_difference(ours, theirs)
    assert mean == pytest.approx((ours - theirs).mean())
    assert low < mean < high < 0
    assert low < -0.003 < high
    assert interval(ours)[1] > interval(theirs)[0]
    assert paired_difference(theirs, ours) == pytest.approx((-mean, -high, -low))
    assert paired_difference(ours, ours) == (0, 0, 0)
    one, other = (summarize(series, series, series) for series in (ours, theirs))
    assert one.minus(other) == pytest.approx((mean, low, high))
    for unknown in (replace(other, blocks=()), replace(other, blocks=other.blocks[1:])):
        with pytest.raises(ValueError, match="needs the same blocks of cycles of both"):
            one.minus(unknown)


# ---- losing the truth


def test_the_truth_is_lost_where_a_method_is_worse_than_climatology_for_long():
    climatology, good = np.full(500, 3.6), np.full(500, 0.5)
    worse, almost = (LOST_AT * 3.6 * factor for factor in (1.001, 0.999))

    def with_part(value, cycles, first=200):
        series = good.copy()
        series[first : first + cycles] = value
        return series

    tracks = [good, with_part(worse, LOST_AFTER - 1), with_part(almost, 300), with_part(60.0, 5)]
    loses = [with_part(worse, LOST_AFTER), with_part(worse, LOST_AFTER, 400), with_part(60.0, 20), with_part(np.nan, 1)]
    assert [bool(lost_truth(series, climatology)) for series in (*tracks, *loses)] == [False] * 4 + [True] * 4
    np.testing.assert_array_equal(lost_truth(np.stack([tracks, loses]), 3.6), [[False] * 4, [True] * 4])
    # Where the climatology errs more, a method may; a short series is judged as a whole.
    assert not lost_truth(3 * climatology, 3 * climatology)
    assert [bool(lost_truth(np.full(30, value), 3.6)) for value in (almost, worse)] == [False, True]


# ---- what an analysis does where it was not looked at


def test_errors_by_the_age_of_the_last_observation():
    seen = np.zeros((5, 1, 3), dtype=bool)
    seen[[0, 3], 0, 0] = seen[2, 0, 1] = True
    error = np.arange(1.0, 16.0).reshape(5, 1, 3)
    truth = np.random.RandomState(0).standard_normal(error.shape)
    found = error_by_age(truth + error, truth, seen)
    by_age = {0: [1, 10, 8], 1: [4, 13, 11], 2: [7, 14]}  # the third site is never seen
    assert found["age"].tolist() == list(by_age)
    np.testing.assert_allclose(found["rmse"], [np.sqrt(np.mean(np.square(e))) for e in by_age.values()])
    np.testing.assert_allclose(found["bias"], [np.mean(e) for e in by_age.values()])
    np.testing.assert_allclose(found["share"], [len(e) / 15 for e in by_age.values()])
    # What was seen in the burn-in is remembered.
    later = error_by_age(truth + error, truth, seen, burn_in=3)
    assert later["age"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(later["bias"], [10, np.mean([11, 13]), 14])


# ---- the summary


def test_only_cycles_after_the_burn_in_count():
    ensemble, truth = case((350,))
    expected = evaluate(ensemble[50:], truth[50:], 0)
    series = [score[50:] for score in (rmse(ensemble, truth), spread(ensemble), crps(ensemble, truth))]
    ensemble[:50] += 1e6
    scores = evaluate(ensemble, truth, 50)
    assert scores == expected
    assert scores.cycles == 300
    assert [scores.rmse, scores.spread, scores.crps] == pytest.approx([part.mean() for part in series])
    assert (scores.rmse_lo, scores.rmse_hi) == interval(series[0])
    assert scores.rmse_lo < scores.rmse < scores.rmse_hi


def test_scores_are_plain_numbers():
    series = np.random.RandomState(0).rand(300).astype(np.float32)
    scores = summarize(series, series, series).as_dict()
    assert {type(value) for value in scores.values()} == {float, int}
    assert list(scores) == ["rmse", "rmse_lo", "rmse_hi", "spread", "crps", "cycles"]


def test_scores_are_printed_with_their_interval_and_compared_by_it():
    low, middle, high = (Scores(x, x - 0.1, x + 0.1, 0.2, 0.1, 500) for x in (0.3, 0.45, 0.6))
    assert str(low) == "RMSE 0.300 [0.200, 0.400], spread 0.200"
    assert [a.overlaps(b) for a, b in ((low, middle), (middle, low), (middle, high))] == [True] * 3
    assert [a.overlaps(b) for a, b in ((low, high), (high, low))] == [False] * 2
