"""The original update as it was published, and what was made of it."""

import numpy as np
import pytest
import torch
from small import SITES, generator, given, normalization, shaken, small_analysis

from assim_lib.training.build import build_filter
from assim_lib.training.experiment import configure

QUARTER = "every_4th_dim_partial_obs"


def features_of(analysis, x, generator=None):
    """What its network is given, features by (member, site)."""
    asked = []
    handle = analysis.trunk.register_forward_pre_hook(lambda _, arguments: asked.append(arguments[0]))
    analysis(x, generator)
    handle.remove()
    return asked[0]


def covariances(of, with_, reach):
    """Of a variable with another at so many sites further on, over members, in NumPy."""
    shifted = np.roll(with_.numpy(), -reach, -1)
    return np.array([np.cov(of[:, i], shifted[:, i])[0, 1] for i in range(SITES)])


# ---- original


@pytest.mark.parametrize(
    ("experiment", "options", "count"),
    [
        ("l96_conv", {"obs_conf": QUARTER}, 90_894),
        ("l96_conv", {}, 90_574),
        ("vl20", {}, 93_456),
        ("ks", {}, 93_898),
        ("l96_conv", {"obs_conf": QUARTER, "network": "original_early", "blocks": 3, "band": 0}, 69_710),
    ],
)
def test_the_original_has_as_many_parameters_as_the_published_ones(experiment, options, count):
    chosen = configure(experiment, analysis="original", **options)
    model = chosen.forecast_model
    states = torch.randn(8, model.channels, model.sites, generator=generator())
    assert sum(p.numel() for p in build_filter(chosen, states).parameters()) == count


@pytest.mark.parametrize("lag", [0, 2])
@pytest.mark.parametrize("tendency", [True, False])
@pytest.mark.parametrize(("channels", "mask_features", "band"), [(1, 1, 1), (2, 1, 2), (2, 2, 0), (1, 0, 1)])
def test_the_original_sees_raw_numbers(channels, mask_features, band, tendency, lag):
    options = {"mask_features": mask_features, "band": band, "tendency": tendency, "lag": lag}
    analysis = small_analysis("original", 5, channels=channels, network="original", **options)
    x = given(analysis)
    expected = [x.base, torch.where(x.mask > 0, x.observation, x.forecast.roll(1, 0))]
    expected += [x.forecast] if lag else []
    expected += [x.tendency] if tendency else []
    # What is seen, as ±0.1; and the covariances of the first channel with all, to both sides.
    shared = [(0.1 if row[i] else -0.1) for row in x.mask[:mask_features] for i in range(SITES)]
    for reach in range(-band, band + 1):
        for channel in range(channels):
            shared.extend(covariances(x.base[:, 0], x.base[:, channel], reach))
    expected.append(torch.tensor(shared, dtype=torch.float64).view(-1, SITES).expand(5, -1, SITES))
    expected = torch.cat([torch.cat(expected, -2).mT, x.memory], -1)
    torch.testing.assert_close(features_of(analysis, x), expected)
    assert analysis.inputs() == expected.shape[-1]
    # The climatology is none of its business.
    elsewhere = small_analysis(
        "original", 5, channels=channels, network="original", normalization=normalization(-3, 9, channels), **options
    )
    assert torch.equal(elsewhere(x).base, analysis(x).base)


@pytest.mark.parametrize("batch", [(), (6,)])
def test_the_original_update_is_the_gated_one(batch):
    analysis = shaken(small_analysis("original", 4, channels=2, network="original"))
    x = given(analysis, batch)
    change, write, gate, keep = analysis.trunk(features_of(analysis, x)).split([2, 3, 2, 3], -1)
    corrected = analysis(x)
    torch.testing.assert_close(corrected.base, torch.sigmoid(gate.mT) * x.base + change.mT)
    torch.testing.assert_close(corrected.memory, torch.sigmoid(keep) * x.memory + write)


# ---- what is not seen


@pytest.mark.parametrize("name", ["original", "gated"])
def test_where_nothing_is_seen_there_is_the_forecast_of_another_member(name):
    analysis = small_analysis(name, 6)
    x = given(analysis, (3,))
    unseen = (x.mask == 0).unsqueeze(-3).expand_as(x.forecast)
    x = x._replace(forecast=x.forecast.clone().requires_grad_())
    completed = analysis.completed(x, None)
    assert torch.equal(completed[~unseen], x.observation.unsqueeze(-3).expand_as(x.forecast)[~unseen])
    assert torch.equal(completed[unseen], x.forecast.roll(1, -3)[unseen])
    assert not completed.requires_grad  # as a constant
    # In training, that of any: another order each time.
    first, again, other = (analysis.completed(x, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for drawn in (first, other):
        assert torch.equal(drawn.sort(-3).values[unseen], x.forecast.sort(-3).values[unseen])


def test_another_members_forecast_moves_no_other_gradient():
    """What an analysis sees of another member teaches that one nothing."""
    for name in ("original", "gated"):
        analysis = shaken(small_analysis(name, 4, band=0, lag=2))
        x = given(analysis, share=0.0)
        forecast = x.forecast.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(analysis(x._replace(forecast=forecast)).base[1].sum(), forecast)
        assert gradient[1].abs().max() > 0
        assert (gradient[[0, 2, 3]] == 0).all()


# ---- gated


@pytest.mark.parametrize("lag", [0, 2])
def test_the_gated_sees_normal_numbers(lag):
    analysis = small_analysis("gated", 4, band=1, lag=lag)
    x = given(analysis)
    normal = [(part - 2.3) / 3.6 for part in (x.base, x.forecast, x.observation)]
    seen = torch.where(x.mask > 0, normal[2], normal[1].roll(1, 0))
    band = [covariances(x.base[:, 0] / 3.6, x.base[:, 0] / 3.6, k) for k in (0, 1)]
    shared = torch.cat([x.mask, torch.from_numpy(np.stack(band))]).expand(4, 3, SITES)
    fields = [normal[0], x.tendency / 3.6, *([normal[1]] if lag else []), seen, shared]
    torch.testing.assert_close(features_of(analysis, x), torch.cat([torch.cat(fields, -2).mT, x.memory], -1))


def test_without_the_other_member_nothing_is_seen_where_nothing_is():
    alone, with_other = (shaken(small_analysis("gated", 4, band=0, other_member=other)) for other in (False, True))
    x = given(alone)
    column = 2  # base, tendency, what is seen
    assert (features_of(alone, x)[..., column] == (x.mask * (x.observation - 2.3) / 3.6)).all()
    assert (features_of(with_other, x)[..., column] != 0).all()


def test_an_untrained_gate_is_open():
    analysis = small_analysis("gated", 4)
    x = given(analysis, (3,))
    share = torch.sigmoid(torch.tensor(3.0, dtype=torch.float64))
    torch.testing.assert_close(analysis(x).base - 2.3, share * (x.base - 2.3))


# ---- recurrent


@pytest.mark.parametrize("lag", [0, 2])
def test_an_untrained_recurrent_analysis_changes_nothing(lag):
    analysis = small_analysis("recurrent", 1, lag=lag)
    x = given(analysis, (3,))
    assert torch.equal(analysis(x).base, x.base)


def test_the_recurrent_sees_what_the_forecast_missed():
    analysis = small_analysis("recurrent", 2)
    x = given(analysis)
    missed = (x.observation - x.predicted) / x.error * x.mask
    assert any(torch.allclose(column, missed[:, 0]) for column in features_of(analysis, x).movedim(-1, 0))


def test_the_recurrent_sees_the_error_where_it_is_asked_to():
    analysis = small_analysis("recurrent", 2, sees_error=True)
    x = given(analysis)
    columns = features_of(analysis, x).movedim(-1, 0)
    assert analysis.weighs_errors
    assert not small_analysis("recurrent", 2).weighs_errors
    error = (x.error / analysis.std).expand_as(x.base)[:, 0]
    missed = ((x.observation - x.predicted) * x.mask / analysis.std)[:, 0]
    for expected in (error.log(), missed):
        assert any(torch.allclose(column, expected) for column in columns)


def test_the_recurrent_sees_the_gradient_where_it_is_asked_to():
    analysis = small_analysis("recurrent", 2, lag=2, sees_gradient=True)
    x = given(analysis)
    base = x.base.clone().requires_grad_()
    # The observation term of 4D-Var's cost, up to what the nonlinear forecast adds: its own operator predicts here.
    missed = (x.observation - x.predicted) * x.mask / x.error_variance
    (gradient,) = torch.autograd.grad((missed * x.predict(base)).sum(), base)
    columns = features_of(analysis, x).movedim(-1, 0)
    assert any(torch.allclose(column, (x.error * gradient)[:, 0]) for column in columns)


def test_the_gradient_of_the_window_is_that_of_the_observations_before():
    analysis = small_analysis("recurrent", 2, lag=2, sees_gradient=True, sees_window=True)
    x = given(analysis)
    observations, masks = x.recent.unbind(1)
    columns = features_of(analysis, x).movedim(-1, 0)
    base = x.base.clone().requires_grad_()
    predicted = x.predict_each(base)
    missed = ((observations[k] - predicted[k]) * masks[k] for k in range(2))
    cost = sum((each.square() / x.error_variance).sum() for each in missed) / 2
    newest = (x.observation - x.predicted) * x.mask / x.error_variance
    for minus_gradient in (
        torch.autograd.grad(-cost, base, retain_graph=True)[0],
        torch.autograd.grad((newest * predicted[2]).sum(), base)[0],
    ):
        assert any(torch.allclose(column, (x.error * minus_gradient)[:, 0]) for column in columns)


def test_training_goes_through_the_gradient_that_is_seen():
    analysis = small_analysis("recurrent", 1, lag=2, sees_gradient=True)
    x = given(analysis)._replace(predict=torch.square)
    column = analysis.inputs() - analysis.memory - 1

    def seen(base):
        return features_of(analysis, x._replace(base=base, predicted=torch.zeros_like(base)))[..., column]

    base = x.base.clone().requires_grad_()
    assert torch.autograd.gradcheck(seen, base)
    (slope,) = torch.autograd.grad(seen(base).sum(), base)
    torch.testing.assert_close(slope[0], 2 * x.observation * x.mask / x.error)
