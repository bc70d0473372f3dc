"""The extended analysis carries a covariance as a Kalman smoother does, as far as that can be trusted."""

import numpy as np
import pytest
import torch
from small import SITES, climatology, generator, given, normalization, record, small_analysis, small_filter
from test_ensemble_kalman import EXACT, chord, kalman

from assim_lib.analyses import Normalization
from assim_lib.systems import Lorenz96
from assim_lib.tracking import assimilate

BATCHES = [(), (5,)]
EVERYWHERE = 1e9  # sites: no localization


def some_covariance(size: float = 1.0) -> torch.Tensor:
    """Of a state of 12 entries whose variances differ, in units of the climatology."""
    root = torch.randn(12, 30, generator=generator(3), dtype=torch.float64) * torch.linspace(0.3, 1.5, 12)[:, None]
    return size * root @ root.mT / 30


# ---- the update


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("inflation", [1.0, 1.05])
def test_untrained_and_without_localization_it_is_a_dense_kalman_update(batch, channels, inflation):
    """With an error of its own at each entry; channels whose units differ."""
    units = Normalization(*(torch.tensor(values).double()[:channels] for values in ([[2.3], [-1.0]], [[3.6], [0.5]])))
    analysis = kalman(1, EVERYWHERE, inflation, kind="extended", channels=channels, normalization=units)
    x = given(analysis, batch)
    # What was seen differs little from the prediction: no surprise.
    near = x.predicted.squeeze(-3) + 0.5 * x.error * torch.sign(x.tendency.squeeze(-3))
    largest = x.covariance.diagonal(dim1=-2, dim2=-1).amax(-1)[..., None, None]
    x = x._replace(
        observation=near * x.mask, covariance=0.5 * x.covariance / largest
    )  # more is certain than on average
    assert x.error.std() > 0.1
    corrected = analysis(x)
    std = units.std.expand(channels, SITES).flatten().numpy()
    for i in np.ndindex(batch):
        mask = x.mask[i].flatten().numpy()
        seen = np.flatnonzero(mask)
        prior = std[:, None] * x.covariance[i].numpy() * std
        operator, error = x.predict.matrix[i].numpy()[seen], np.diag(x.error_variance.flatten().numpy()[seen])
        gain = prior @ operator.T @ np.linalg.inv(operator @ prior @ operator.T + error)
        missed = (x.observation[i] - x.predicted[i][0]).flatten().numpy()[seen]
        np.testing.assert_allclose(
            (corrected.base[i] - x.base[i]).detach().flatten(), gain @ missed, rtol=1e-6, atol=1e-9
        )
        posterior = inflation**2 * (prior - gain @ operator @ prior) / std[:, None] / std
        np.testing.assert_allclose(corrected.covariance[i].detach(), posterior, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("lag", [0, 3])
def test_a_surprising_innovation_widens_a_carried_covariance(lag):
    """By the ratio of what was seen to what was expected, beyond what chance allows, and not without bound."""
    analysis = small_analysis("extended", 1, lag=lag)
    x = given(analysis, (40,), share=0.7)
    prior = x.covariance
    operator = x.mask.flatten(-2).unsqueeze(-1) * x.predict.matrix * float(analysis.std)
    torch.testing.assert_close(analysis._observing(x), operator)
    variance = (operator @ prior @ operator.mT).diagonal(dim1=-2, dim2=-1) / x.error_variance.flatten()
    received = x.mask.sum((-2, -1))
    deviation = (2 * x.mask.flatten(-2) * (1 + variance) ** 2).sum(-1).sqrt()
    between = 0
    for size in (0.5, 1.5, 2.0, 3.0, 5.0, 8.0, 1000.0):
        innovation = size * torch.randn((40, 1, 1, SITES), generator=generator(5)).double() * x.mask[:, None]
        squares = innovation.square().sum((1, 2, 3))
        expected = ((squares - received - 3 * deviation) / variance.sum(-1)).clamp(1, 2)
        factor = analysis._surprise_factor(x, operator, prior, innovation)
        torch.testing.assert_close(factor, expected[:, None, None], **EXACT)
        between += int(((factor > 1) & (factor < 2)).sum())
        assert (factor == {0.5: 1, 1000.0: 2}.get(size, factor)).all()
    assert between > 0


def test_the_base_inflation_is_not_learned_and_nothing_less_certain_than_in_the_climatology():
    analysis = small_analysis("extended", 1, inflation=1.07)
    assert float(analysis.log_inflation.exp()) == pytest.approx(1.07)
    assert (analysis.log_inflation.requires_grad, analysis.log_taper_length.requires_grad) == (False, True)
    covariance = some_covariance()
    bounded = analysis._bounded(covariance)
    variances = covariance.diagonal()
    assert (variances > 1).any()
    assert (variances < 1).any()
    torch.testing.assert_close(bounded.diagonal(), variances.clamp(max=1.0))
    correlations = [c / c.diagonal().sqrt() / c.diagonal().sqrt()[:, None] for c in (covariance, bounded)]
    torch.testing.assert_close(*correlations)
    small = some_covariance(0.01)
    torch.testing.assert_close(analysis._bounded(small), small)


def test_the_localization_follows_the_expected_error():
    analysis, like = small_analysis("extended", 1, taper_length=0.8), torch.ones(1, 12, dtype=torch.float64)
    sizes = (0.05, 0.5)
    for size in sizes:
        covariance = some_covariance(size)
        reach = 0.8 / covariance.diagonal().mean()
        kept = analysis._localized_by_error(like, covariance) / covariance
        for distance in (0, 1, 4):
            expected = torch.exp(-0.5 * (chord(0, distance, 12) / reach) ** 2).expand(12 - distance)
            torch.testing.assert_close(kept.diagonal(distance), expected)
    batch = torch.stack([some_covariance(size) for size in sizes])
    one_by_one = torch.stack([analysis._localized_by_error(like, c) for c in batch])
    torch.testing.assert_close(analysis._localized_by_error(like.expand(2, 1, 12), batch), one_by_one)


# ---- what is carried


@pytest.mark.parametrize("batch", BATCHES)
def test_it_starts_from_the_error_of_a_random_state_as_a_guess_of_another(batch):
    analysis = small_analysis("extended", 1)
    initial = analysis.initial_covariance(*batch, climatology=climatology())
    differences = (climatology()[:, None] - climatology()).flatten(0, 1).flatten(1) / 3.6
    expected = np.cov(differences.numpy().T, bias=True) * 64 / 63  # of different states alone
    for i in np.ndindex(batch):
        np.testing.assert_allclose(initial[i], expected, rtol=1e-10)


@pytest.mark.parametrize("size", [1e-4, 9.0])
def test_the_model_takes_state_and_covariance_along(size):
    """By its derivative, and with the shift of the mean to second order; both stay bounded where little is known."""
    model, mean, std = Lorenz96(sites=SITES), climatology()[0], 3.6
    analysis = small_analysis("extended", 1)
    states = torch.randn(60, 1, SITES, generator=generator(), dtype=torch.float64)
    covariance = size * torch.cov(states.flatten(1).mT)
    following, later = analysis.forecast(mean[None], covariance, lambda x: model.flow(x, 2))

    def flow(x):
        return model.flow(x.view(1, SITES), 2).flatten()

    derivative = torch.func.jacrev(flow)(mean.flatten())
    exact = derivative @ covariance @ derivative.mT
    curvature = torch.func.hessian(flow)(mean.flatten())
    second = 0.5 * torch.einsum("jkl,kl->j", curvature, std**2 * covariance)
    shift = following.flatten() - flow(mean)
    torch.testing.assert_close(later, later.mT)
    if size < 1:
        torch.testing.assert_close(later, exact, rtol=1e-2, atol=1e-3 * float(exact.abs().max()))
        torch.testing.assert_close(shift, second, rtol=0.02, atol=1e-3 * float(second.abs().max()))
    else:
        assert (shift - second).norm() > 0.5 * second.norm()
        assert shift.abs().max() < 0.3 * std
        assert 1e-3 < (later - exact).norm() / exact.norm() < 0.5


@pytest.mark.parametrize("batch", BATCHES)
def test_drawn_members_have_the_carried_covariance(batch):
    analysis = small_analysis("extended", 1, channels=2, normalization=normalization(channels=2), lag=2)
    states = 3.6 * torch.randn(60, 2, SITES, generator=generator(), dtype=torch.float64)
    covariance = analysis.initial_covariance(*batch, climatology=states)
    base = states[0].expand(*batch, 1, 2, SITES)
    members = analysis.sample_members(base, covariance, 4000, generator(1))
    assert members.shape == (*batch, 4000, 2, SITES)
    torch.testing.assert_close(members.mean(-3, keepdim=True), base, **EXACT)
    one = members.reshape(-1, 4000, 2 * SITES)[0]
    expected = 2 * torch.cov(states.flatten(1).mT)
    # Each entry of a sample covariance is off by its standard error, a few times at most.
    error = (expected.diagonal()[:, None] * expected.diagonal() + expected**2).div(4000).sqrt()
    assert ((torch.cov(one.mT) - expected).abs() < 5 * error).all()


@pytest.mark.parametrize("noise", [1e-3, 1e-5])
def test_errors_far_below_the_climatology_leave_numbers_in_single_precision(noise):
    observations = record(small_filter("extended", 1, lag=1, noise=noise), cycles=40).float()
    model = small_filter("extended", 1, lag=1, noise=noise).float()
    analyses = assimilate(model, observations, generator())
    assert analyses.isfinite().all()
    assert (analyses[20:, 0] - observations[20:]).abs().max() < 1.0
