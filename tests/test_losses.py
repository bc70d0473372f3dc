"""What a loss compares, and that its expectation is the distance to the truth."""

import pytest
import torch
from small import generator

from assim_lib.losses import (
    LARGEST_LOSS,
    LOSSES,
    LossInputs,
    clean_analysis,
    displacement_loss,
    ss_analysis,
    ss_forecast,
    trajectory_weight,
)
from assim_lib.observations import identity


def inputs(analysis, observation=None, mask=None, sigma=1.0, forecasts=None, ahead=None, **others):
    """What a cycle has to show; what is not said is the analysis, its mean, or everywhere.

    forecasts, ahead : of one lead, or of several.
    """
    observation = analysis.mean(-3) if observation is None else observation
    mask = torch.ones_like(observation) if mask is None else mask
    forecasts = analysis if forecasts is None else forecasts
    following, seen = (observation, mask) if ahead is None else ahead
    if forecasts.ndim == 4:
        forecasts, following, seen = forecasts[:, None], following[:, None], seen[:, None]
    sigma = torch.full(observation.shape[1:], sigma, dtype=observation.dtype)
    weight = torch.ones(len(analysis), dtype=observation.dtype)
    parts = {"truth": observation, "operator": identity, "sigma": sigma, "weight": weight, **others}
    return LossInputs(
        analysis=analysis,
        forecasts=forecasts,
        observation=observation,
        mask=mask,
        next_observations=following,
        next_masks=seen,
        **parts,
    )


def test_the_losses_by_hand():
    """What is not compared is far away."""
    analysis = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]], [[3.0, 2.0, 1.0, 0.0]]]])  # mean 2 everywhere
    numbers, mask = torch.tensor([[[2.0, 3.0, 4.0, 99.0]]]), torch.tensor([[[1.0, 1.0, 1.0, 0.0]]])
    far, ones = torch.full((1, 1, 4), 1e3), torch.ones(1, 1, 4)
    seen = inputs(analysis, numbers, mask, 2.0, forecasts=far[:, None], ahead=(-far, ones), truth=-far)
    ahead = inputs(far[:, None], -far, ones, 2.0, forecasts=analysis, ahead=(numbers, mask), truth=-far)
    for loss, given in ((ss_analysis, seen), (ss_forecast, ahead)):
        assert float(loss(given)) == pytest.approx((0 + 1 + 4) / 3 / 4)
        assert float(loss(given._replace(operator=lambda x: 2 * x))) == pytest.approx((4 + 1 + 0) / 3 / 4)
        uneven = given._replace(sigma=torch.tensor([[1.0, 2.0, 4.0, 1.0]]))
        assert float(loss(uneven)) == pytest.approx((0 + 1 / 4 + 4 / 16) / 3)
    # The truth of all sites, seen or not, as it is.
    truth = torch.tensor([[[2.0, 3.0, 4.0, 3.0]]])
    clean = inputs(analysis, -far, mask, 2.0, far[:, None], truth=truth, operator=lambda x: 2 * x)
    assert float(clean_analysis(clean)) == pytest.approx((0 + 1 + 4 + 1) / 4 / 4)


def test_each_lead_counts_as_much_as_another():
    forecasts = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1, 1).expand(1, 2, 1, 1, 4)
    seen = torch.ones(1, 2, 1, 4)
    seen[:, 1, :, 1:] = 0
    zeros = torch.zeros(1, 2, 1, 4)
    assert float(ss_forecast(inputs(forecasts[:, 0], forecasts=forecasts, ahead=(zeros, seen)))) == (1 + 9) / 2


@pytest.mark.parametrize("seen", [1, 8, 200])
def test_a_lost_trajectory_pulls_no_harder_the_farther_away_it_is(seen):
    bound, sigma = LARGEST_LOSS + 4 * (2 / seen) ** 0.5, torch.full((1, seen), 2.0)
    sizes = torch.tensor([1.0, 0.9 * bound**0.5, 2 * bound, 1000.0])
    weight = trajectory_weight(2 * sizes.view(4, 1, 1).expand(4, 1, seen), torch.ones(4, 1, seen), sigma)
    assert weight.tolist() == pytest.approx([1.0, 1.0, bound / (2 * bound) ** 2, bound / 1e6])


@pytest.mark.parametrize("seen", [1, 10, 40])
def test_a_filter_that_tracks_meets_the_bound_by_chance_only(seen):
    """A good forecast's loss is 1 plus the scatter of the observation errors, the larger the fewer they are."""
    errors = torch.randn(20000, 1, seen, generator=generator(seen))
    weight = trajectory_weight(errors, torch.ones_like(errors), torch.ones(1, seen))
    assert float((weight < 1).float().mean()) < 0.01


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_loss_is_the_weighted_mean_over_trajectories_and_least_where_it_looks(loss):
    x, weight = torch.arange(1.0, 5.0).view(4, 1, 1, 1), torch.tensor([1.0, 0.5, 0.0, 0.25])
    assert float(loss(inputs(x, torch.zeros(4, 1, 1), weight=weight))) == pytest.approx((1 + 0.5 * 4 + 0.25 * 16) / 4)
    observation = torch.randn(5, 1, 8, generator=generator())
    perfect = observation[:, None].expand(5, 3, 1, 8)
    assert float(loss(inputs(perfect, observation))) < 1e-10 < float(loss(inputs(perfect + 0.5, observation)))


def test_the_weight_biases_nothing():
    """What weighs an error is known before the observation that it is measured with: the least loss is at the truth.

    A weight that looked at this error itself would pull the best guess of a skewed quantity away from its mean.
    """
    draws, ones = 200_000, torch.ones(200_000, 1, 1)
    error = -torch.rand(draws, 1, 1, generator=generator(1)).log() - 1  # skewed, mean zero
    last = 3 * torch.randn(draws, 1, 1, generator=generator())
    guess = torch.zeros(1, requires_grad=True)
    weight = trajectory_weight(last, ones, torch.ones(1, 1))
    loss = ss_forecast(inputs(guess.expand(draws, 1, 1, 1), error, ahead=(error, ones), weight=weight))
    (gradient,) = torch.autograd.grad(loss, guess)
    assert weight.min() < 0.5
    assert abs(float(gradient)) < 0.02


@pytest.mark.parametrize("loss", [ss_forecast, ss_analysis])
def test_a_cycle_that_sees_nothing_costs_nothing(loss):
    x = torch.ones(2, 1, 1, 5, requires_grad=True)
    value = loss(inputs(x, torch.zeros(2, 1, 5), torch.zeros(2, 1, 5)))
    value.backward()
    assert float(value.detach()) == 0
    assert (x.grad == 0).all()


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_the_expected_loss_is_the_distance_to_the_truth_plus_one(sigma):
    draws, sites = 4000, 200
    truth = torch.randn(sites, generator=generator(1), dtype=torch.float64)
    forecast = (truth + 0.4 * sigma * torch.randn(sites, generator=generator(2), dtype=torch.float64)).requires_grad_()
    unit = torch.randn((draws, 1, sites), generator=generator(3), dtype=torch.float64)
    ahead = truth + sigma * unit, torch.ones_like(unit)
    loss = ss_forecast(inputs(forecast.expand(draws, 1, 1, sites), ahead=ahead, sigma=sigma))
    distance = (forecast - truth).square().mean() / sigma**2
    assert 0.1 < distance < 0.3
    # Half a million independent errors: 1 ± 0.0016, and so on.
    assert float(loss.detach()) == pytest.approx(float(distance.detach()) + 1, abs=0.01)
    (of_loss,), (of_distance,) = (torch.autograd.grad(x, forecast) for x in (loss, distance))
    assert (of_loss - of_distance).norm() / of_distance.norm() < 0.06


@pytest.mark.parametrize(("sigma", "error"), [(0.5, 0.5), (2.0, 1.0)])
def test_only_an_observation_that_is_not_seen_knows_the_best_weight(sigma, error):
    """Analyses x + w (y − x) of a forecast x: the expected losses, by the arithmetic of independent errors."""
    unit = torch.randn((4, 500, 1, 400), generator=generator(), dtype=torch.float64)
    truth, forecast = 3 * unit[0], 3 * unit[0] + error * unit[1]
    observation, another = truth + sigma * unit[2], truth + sigma * unit[3]
    best = error**2 / (error**2 + sigma**2)
    values: dict[str, list[float]] = {name: [] for name in LOSSES}
    weights = [0.0, best - 0.1, best, best + 0.1, 1.0]
    for w in weights:
        analysis = (forecast + w * (observation - forecast))[:, None]
        ahead = another, torch.ones_like(another)
        given = inputs(analysis, observation, sigma=sigma, ahead=ahead, truth=truth)
        clean = ((1 - w) ** 2 * error**2 + w**2 * sigma**2) / sigma**2
        itself = (1 - w) ** 2 * (error**2 + sigma**2) / sigma**2
        for name, expected in {"clean_analysis": clean, "ss_analysis": itself, "ss_forecast": clean + 1}.items():
            values[name].append(float(LOSSES[name](given)))
            assert values[name][-1] == pytest.approx(expected, abs=0.02)
    least = {name: weights[series.index(min(series))] for name, series in values.items()}
    # The counterexample copies the observation, at no cost, while its error is that of the observation.
    assert least == {"clean_analysis": best, "ss_analysis": 1.0, "ss_forecast": best}
    assert values["ss_analysis"][-1] == pytest.approx(0, abs=1e-20)


# ---- what a wrong model displaces


def test_the_displacement_is_learned_although_the_analysis_has_seen_the_observation():
    """An analysis that is displaced by −.5, and has taken over a third of each error."""
    draws = 200_000
    error = torch.randn(draws, 1, 1, generator=generator())
    truth = torch.randn(draws, 1, 1, generator=generator(1))
    guess = torch.zeros(1, requires_grad=True)
    found = []
    for _ in range(2):
        displacement = guess.expand(draws, 1, 1, 1)
        analysis = (truth - 0.5 + error / 3)[:, None] + displacement
        loss = displacement_loss(inputs(analysis, truth + error), displacement)
        (gradient,) = torch.autograd.grad(loss, guess)
        guess = (guess - gradient / 2).detach().requires_grad_()  # the least of a parabola
        found.append(float(guess.detach()))
    assert found == pytest.approx([0.5, 0.5], abs=0.01)


def test_nothing_but_the_displacement_learns_from_its_loss():
    analysis = torch.zeros(2, 3, 1, 5, requires_grad=True)
    displacement = torch.zeros(2, 1, 1, 5, requires_grad=True)
    mask = torch.tensor([1.0, 0, 1, 0, 0]).expand(2, 1, 5)
    numbers = torch.ones(2, 1, 5) * 4
    displacement_loss(inputs(analysis + displacement, numbers, mask, sigma=2.0), displacement).backward()
    assert analysis.grad is None or (analysis.grad == 0).all()
    torch.testing.assert_close(displacement.grad[:, 0], -2 * 4 / 4 / 2 / 2 * mask)  # of the mean over two batches
