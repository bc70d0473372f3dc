"""Scores by their formulas, and intervals that hold what they promise."""

import numpy as np
import pytest
from scipy.stats import chisquare

from assim_lib.evaluation import BLOCK, Scores, crps, evaluate, interval, ranks, rmse, spread, summarize

BATCHES = [(), (64,), (2, 3)]


def case(batch=(), members=5, seed=0, channels=2, sites=4):
    random = np.random.RandomState(seed)
    return random.standard_normal((*batch, members, channels, sites)), random.standard_normal((*batch, channels, sites))


def by_trajectory(batch, score, *fields):
    """The score of each trajectory, alone."""
    flat = [field.reshape(-1, *field.shape[len(batch) :]) for field in fields]
    return np.array([score(*parts) for parts in zip(*flat, strict=True)]).reshape(batch)


def pairwise_crps(ensemble, truth):
    pairs = np.abs(ensemble[:, None] - ensemble[None]).mean((0, 1))
    return (np.abs(ensemble - truth).mean(0) - pairs / 2).mean()


# ---- formulas


def test_rmse_and_spread_by_hand():
    ensemble = np.array([[[1.0, 2.0]], [[3.0, 6.0]]])  # means 2 and 4, variances 2 and 8
    truth = np.array([[5.0, 8.0]])
    assert rmse(ensemble, truth) == pytest.approx(np.sqrt((9 + 16) / 2))
    assert spread(ensemble) == pytest.approx(np.sqrt((2 + 8) / 2))


@pytest.mark.parametrize("batch", BATCHES)
def test_scores_of_a_batch_are_those_of_its_trajectories(batch):
    ensemble, truth = case(batch)
    for ours, score, fields in (
        (rmse(ensemble, truth), lambda e, t: np.sqrt(((e.mean(0) - t) ** 2).mean()), (ensemble, truth)),
        (spread(ensemble), lambda e: np.sqrt(e.var(0, ddof=1).mean()), (ensemble,)),
        (crps(ensemble, truth), pairwise_crps, (ensemble, truth)),
    ):
        assert ours.shape == batch
        np.testing.assert_allclose(ours, by_trajectory(batch, score, *fields), rtol=1e-12)


@pytest.mark.parametrize("batch", BATCHES)
def test_a_single_member_has_no_spread_and_its_crps_is_the_absolute_error(batch):
    ensemble, truth = case(batch, members=1)
    assert (spread(ensemble) == 0).all()
    assert spread(ensemble).shape == batch
    np.testing.assert_allclose(crps(ensemble, truth), np.abs(ensemble[..., 0, :, :] - truth).mean((-2, -1)), rtol=1e-12)


def test_in_a_reliable_ensemble_spread_is_the_error():
    members, sites = 10, 4000
    ensemble, truth = case((50,), members, channels=1, sites=sites)
    expected = np.sqrt(1 + 1 / members)  # the mean of finitely many members has an error of its own
    assert rmse(ensemble, truth).mean() == pytest.approx(expected, rel=0.01)
    assert spread(ensemble).mean() == pytest.approx(1, rel=0.01)


# ---- ranks


@pytest.mark.parametrize("members", [1, 9])
def test_ranks_are_flat_for_a_reliable_ensemble(members):
    ensemble, truth = case((100,), members, sites=40)
    frequency = ranks(ensemble, truth)
    assert frequency.shape == (members + 1,)
    assert frequency.sum() == pytest.approx(1)
    assert chisquare(truth.size * frequency).pvalue > 0.01


def test_ranks_show_what_is_wrong():
    ensemble, truth = case((100,), 9, sites=40)
    timid = ranks(0.5 * ensemble, truth)
    assert min(timid[0], timid[-1]) > 2 * timid[1:-1].max()
    high = ranks(ensemble + 1, truth)
    assert high[0] > 3 * high[-1]
    assert ranks(ensemble + 100, truth).tolist() == [1.0] + 9 * [0.0]


# ---- confidence intervals


def ar1(series, cycles, memory, mean=0.3):
    """Independent stationary autoregressive series with that memory, in cycles, and that mean."""
    random, decay = np.random.RandomState(11), np.exp(-1 / memory)
    x = np.empty((series, cycles))
    x[:, 0] = random.standard_normal(series)
    for k in range(1, cycles):
        x[:, k] = decay * x[:, k - 1] + np.sqrt(1 - decay**2) * random.standard_normal(series)
    return mean + 0.1 * x


def test_the_interval_covers_the_true_mean_of_a_correlated_series():
    series = ar1(200, 5000, memory=10)
    low, high = np.array([interval(s) for s in series]).T
    covered = ((low < 0.3) & (high > 0.3)).mean()
    assert 0.88 <= covered <= 0.99
    # What makes blocks necessary: as if cycles were independent, the interval would be far too narrow.
    half = 1.96 * series.std(1) / np.sqrt(series.shape[1])
    naive = (np.abs(series.mean(1) - 0.3) < half).mean()
    assert naive < 0.6
    assert np.median(high - low) < 0.06


def test_the_interval_is_repeatable():
    (series,) = ar1(1, 1000, memory=5)
    assert interval(series) == interval(series)
    assert interval(series, seed=1) != interval(series)


@pytest.mark.parametrize("cycles", [0, 1, BLOCK, 2 * BLOCK - 1])
def test_too_short_a_series_is_one_sentence(cycles):
    sentence = rf"^{cycles} cycles are too few for a confidence interval: at least {2 * BLOCK} are needed\.$"
    with pytest.raises(ValueError, match=sentence):
        interval(np.zeros(cycles))
    interval(np.random.RandomState(0).standard_normal(2 * BLOCK))


# ---- the summary


def test_only_cycles_after_the_burn_in_count():
    ensemble, truth = case((350,))
    expected = evaluate(ensemble[50:], truth[50:], 0)
    ensemble[:50] += 1e6
    scores = evaluate(ensemble, truth, 50)
    assert scores == expected
    assert scores.cycles == 300
    assert scores.rmse == pytest.approx(rmse(ensemble, truth)[50:].mean())
    assert scores.spread == pytest.approx(spread(ensemble)[50:].mean())
    assert scores.crps == pytest.approx(crps(ensemble, truth)[50:].mean())
    assert scores.rmse_lo < scores.rmse < scores.rmse_hi
    assert (scores.rmse_lo, scores.rmse_hi) == interval(rmse(ensemble, truth)[50:])


def test_scores_are_plain_numbers():
    series = np.random.RandomState(0).rand(300).astype(np.float32)
    scores = summarize(series, series, series).as_dict()
    assert {type(value) for value in scores.values()} == {float, int}
    assert list(scores) == ["rmse", "rmse_lo", "rmse_hi", "spread", "crps", "cycles"]


def test_scores_are_printed_with_their_interval_and_compared_by_it():
    low, middle, high = (Scores(x, x - 0.1, x + 0.1, 0.2, 0.1, 500) for x in (0.3, 0.45, 0.6))
    assert str(low) == "RMSE 0.300 [0.200, 0.400], spread 0.200"
    assert low.overlaps(middle)
    assert middle.overlaps(low)
    assert middle.overlaps(high)
    assert not low.overlaps(high)
    assert not high.overlaps(low)
