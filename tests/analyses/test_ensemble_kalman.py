"""Untrained, these analyses are localized Kalman filters; trained, they stay near to one."""

import numpy as np
import pytest
import torch
from small import SITES, climatology, generator, given, normalization, shaken, small_analysis

from assim_lib.analyses import Analysis, HybridAnalysis
from assim_lib.analyses.base import AnalysisInput
from assim_lib.analyses.covariances import central_differences, cholesky
from assim_lib.analyses.ensemble_kalman import received_error
from assim_lib.evaluation import rmse
from assim_lib.setting import Setting
from assim_lib.training.build import build_filter
from assim_lib.training.experiment import configure
from assim_lib.training.validation import run_filter

BATCHES = [(), (64,)]
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def with_exact(analysis: Analysis, length: float, inflation: float) -> Analysis:
    """The analysis with these numbers in float64: its own are logarithms in float32."""
    for parameter, value in ((analysis.log_taper_length, length), (analysis.log_inflation, inflation)):
        assert float(parameter.detach().exp()) == pytest.approx(value, rel=1e-5)
        parameter.data.fill_(np.log(value))
    return analysis


def kalman(members, length, inflation, kind="hybrid", **options):
    analysis = small_analysis(kind, members, taper_length=length, inflation=inflation, **options)
    return with_exact(analysis, length, inflation)


def chord(one, other, sites):
    """Straight from site to site, where neighbours on the circle are about 1 apart."""
    angles = np.stack(np.broadcast_arrays(one, other)) * 2 * np.pi / sites
    return np.abs(np.exp(1j * angles[0]) - np.exp(1j * angles[1])) * sites / (2 * np.pi)


def ring_taper(channels, sites, length, moved=0.0):
    """What was at site i at the time of the base is at i + moved when site j is seen."""
    place = np.tile(np.arange(sites), channels)
    return np.exp(-(chord(place[:, None] + moved, place, sites) ** 2) / (2 * length**2))


def of_batch(x: AnalysisInput, corrected, batch):
    """Three trajectories: input and corrected base, in NumPy."""
    shared = ("covariance", "predict", "error", "error_variance")
    fields = {name: part for name, part in x._asdict().items() if part is not None and name not in shared}
    fields["corrected"] = corrected
    flat = {name: part.detach().reshape(-1, *part.shape[len(batch) :])[:3].numpy() for name, part in fields.items()}
    flat["matrix"] = x.predict.matrix.reshape(-1, *x.predict.matrix.shape[-2:])[:3].numpy()
    for i in range(len(flat["base"])):
        yield {name: part[i] for name, part in flat.items()} | {"error": x.error.numpy()}


# ---- the hybrid


def localized_denkf(base, predicted, observation, mask, error, length, inflation, moved=0.0):
    """Sakov & Oke (2008), with tapered covariances and an error for each entry, in NumPy, of the seen entries alone."""
    members, channels, sites = base.shape
    seen = np.flatnonzero(mask.ravel())
    state, hx = base.reshape(members, -1), predicted.reshape(members, -1)[:, seen]
    a, y = state - state.mean(0), hx - hx.mean(0)
    cross = ring_taper(channels, sites, length, moved)[:, seen] * (a.T @ y) / (members - 1)
    covariance = ring_taper(channels, sites, length)[np.ix_(seen, seen)] * (y.T @ y) / (members - 1)
    gain = cross @ np.linalg.inv(covariance + np.diag(error.ravel()[seen] ** 2))
    mean = state.mean(0) + gain @ (observation.ravel()[seen] - hx.mean(0))
    return (mean + inflation * (a - 0.5 * y @ gain.T)).reshape(base.shape)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize(
    ("length", "inflation", "lag", "drift"), [(3.0, 1.03, 0, 0.0), (3.0, 1.03, 2, 0.0), (1.5, 1.2, 5, -0.5)]
)
def test_the_untrained_hybrid_is_a_localized_denkf(batch, channels, share, length, inflation, lag, drift):
    analysis = kalman(5, length, inflation, channels=channels, lag=lag, drift=drift)
    x = given(analysis, batch, share=share)
    assert x.error.std() > 0.1  # another for each entry
    for one in of_batch(x, analysis(x).base, batch):
        update = (one["base"], one["predicted"], one["observation"], one["mask"], one["error"])
        expected = localized_denkf(*update, length, inflation, lag * drift)
        np.testing.assert_allclose(one["corrected"], expected, rtol=1e-9, atol=1e-9)


def test_without_localization_the_hybrid_has_the_kalman_gain():
    """An ensemble with exactly the mean and covariance of the Gaussian prior."""
    members = 200
    analysis = kalman(members, 1e6, 1.0)
    x = given(analysis)
    random = np.random.RandomState(0)
    root, mean = random.standard_normal((SITES, SITES)), random.standard_normal(SITES)
    covariance, seen = root @ root.T, np.flatnonzero(x.mask[0])
    operator, error = np.eye(SITES)[seen], np.diag(x.error[0, seen] ** 2)
    gain = covariance @ operator.T @ np.linalg.inv(operator @ covariance @ operator.T + error)
    expected = mean + gain @ (x.observation[0, seen].numpy() - mean[seen])

    sample = random.standard_normal((members, SITES))
    sample -= sample.mean(0)
    white = sample @ np.linalg.inv(np.linalg.cholesky(np.cov(sample.T))).T
    ensemble = torch.from_numpy(mean + white @ root.T)[:, None]
    corrected = analysis(x._replace(base=ensemble, forecast=ensemble, predicted=ensemble)).base[:, 0].detach().numpy()
    assert np.abs(expected - mean).max() > 1
    np.testing.assert_allclose(corrected.mean(0), expected, atol=1e-8)
    left = np.eye(SITES) - 0.5 * gain @ operator  # the perturbations move by half the gain
    np.testing.assert_allclose(np.cov(corrected.T), left @ covariance @ left.T, atol=1e-8)


def test_the_hybrid_starts_where_it_is_told_and_its_inflation_is_bounded():
    analysis = small_analysis("hybrid", 4, inflation=1.25, taper_length=2.5)
    learned = {name: float(p.detach().exp()) for name, p in analysis.named_parameters() if name.startswith("log_")}
    assert learned == pytest.approx({"log_inflation": 1.25, "log_taper_length": 2.5})
    x = given(analysis)
    spread = analysis(x).base.std(-3)
    with torch.no_grad():
        analysis.trunk.head.bias[1] = 1e6  # outputs: correction, inflation, …
    ratio = analysis(x).base.std(-3) / spread
    torch.testing.assert_close(ratio, torch.full_like(ratio, HybridAnalysis.largest_inflation).exp(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["hybrid", "covariant"])
def test_seeing_nothing_leaves_the_mean_alone(kind):
    analysis = small_analysis(kind, 4, inflation=1.0)
    x = given(analysis, share=0.0)
    torch.testing.assert_close(analysis(x).base.mean(-3), x.base.mean(-3), **EXACT)


def test_covariances_are_among_the_features():
    analysis, asked = small_analysis("hybrid", 4, band=2), []
    x = given(analysis, share=0.0)
    analysis.trunk.register_forward_pre_hook(lambda _, arguments: asked.append(arguments[0]))
    analysis(x)
    covariance = np.cov((x.base[:, 0] / float(normalization().std)).T)
    for k in (1, 2):
        expected = torch.tensor([16 * covariance[i, (i + k) % SITES] for i in range(SITES)])
        assert any(torch.allclose(column, expected) for column in asked[0][0].T)


def test_a_hybrid_with_a_long_taper_tracks():
    """Its reach is more than half of the circle: a taper that is no covariance would leave none to be inverted."""
    experiment = configure("l96_conv", analysis="hybrid", m=20, lag=0, noise=0.3, taper_length=14.0, drift=0.0)
    twin = Setting(noise=0.3).load("validation")
    ensemble, _ = run_filter(experiment, build_filter(experiment, climatology(40).float()), twin, cycles=200)
    assert rmse(ensemble, twin.truth[:200])[50:].max() < 0.5


# ---- covariant localization


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("channels", [1, 2])
def test_the_untrained_covariant_mean_is_that_of_the_localized_covariance(batch, channels):
    analysis = kalman(4, 2.0, 1.0, kind="covariant", channels=channels)
    x = given(analysis, batch)
    for one in of_batch(x, analysis(x).base, batch):
        seen, state = np.flatnonzero(one["mask"].ravel()), one["base"].reshape(4, -1)
        covariance = ring_taper(channels, SITES, 2.0) * np.cov(state.T)
        operator, error = one["matrix"][seen], np.diag(one["error"].ravel()[seen] ** 2)
        gain = covariance @ operator.T @ np.linalg.inv(operator @ covariance @ operator.T + error)
        expected = state.mean(0) + gain @ (one["observation"].ravel() - one["predicted"].reshape(4, -1).mean(0))[seen]
        np.testing.assert_allclose(one["corrected"].reshape(4, -1).mean(0), expected, rtol=1e-8, atol=1e-8)


def test_refitted_members_are_nearer_to_the_analysis_covariance():
    """Nearer than those that moved by half the gain: their localized covariance in the Frobenius norm."""
    analysis = kalman(4, 2.0, 1.0, kind="covariant")
    x = given(analysis, (20,), share=1.0)
    taper, sensitivity = torch.from_numpy(ring_taper(1, SITES, 2.0)), x.predict.matrix

    def localized(ensemble):
        deviations = (ensemble - ensemble.mean(-3, keepdim=True)).flatten(-2)
        return taper * (deviations.mT @ deviations) / 3

    prior = localized(x.base)
    cross = prior @ sensitivity.mT
    gain = cross @ torch.linalg.inv(sensitivity @ cross + torch.diag(x.error_variance[0]))
    posterior = prior - gain @ cross.mT

    def distance(refits):
        analysis.refits = refits
        return torch.linalg.matrix_norm(localized(analysis(x).base) - posterior)

    assert (distance(5) < distance(0)).all()
    assert (distance(500) < distance(5)).all()


# ---- what they are made of


@pytest.mark.parametrize("length", [0.5, 3.0, 12.0, 100.0])
@pytest.mark.parametrize("sites", [11, 40])
def test_a_taper_is_a_covariance(length, sites):
    analysis, like = kalman(4, length, 1.0, sites=sites), torch.ones(1, sites, dtype=torch.float64)
    taper = analysis._taper(like).detach()
    torch.testing.assert_close(taper, torch.from_numpy(ring_taper(1, sites, length)))
    torch.testing.assert_close(taper.diagonal(), torch.ones(sites, dtype=torch.float64))
    assert torch.linalg.eigvalsh(taper).min() > -1e-12


def test_the_error_of_what_was_not_received_is_one():
    analysis = shaken(small_analysis("hybrid", 4, channels=2))
    x = given(analysis, (3,))
    error = received_error(x)
    assert error.shape == (3, 2 * SITES, 2 * SITES)
    expected = torch.where(x.mask > 0, x.error.square(), 1.0).flatten(-2)
    torch.testing.assert_close(error, torch.diag_embed(expected))


@pytest.mark.parametrize("batch", [(), (3,)])
def test_central_differences_of_a_quadratic_function_are_exact(batch):
    """Its derivative; and as the shift of the mean half the trace of covariance times second derivative."""
    size, source = 2 * 3, generator(1)

    def normal(*shape):
        return torch.randn(shape, generator=source, dtype=torch.float64)

    linear, curved, mean = normal(size, size), normal(size, size, size), normal(*batch, 1, 2, 3)
    root = torch.linalg.cholesky(torch.eye(size) + 0.1 * torch.cov(normal(size, 20)))
    share = 0.1 + torch.rand(batch, generator=source, dtype=torch.float64)

    def function(states):
        x = states.flatten(-2)
        return (x @ linear.mT + torch.einsum("kij,...i,...j->...k", curved, x, x)).view_as(states)

    columns = root.mT.expand(*batch, size, size).unflatten(-1, (2, 3))
    derivative, shift = central_differences(function, mean, columns, share)
    both = curved + curved.mT
    torch.testing.assert_close(derivative, linear + torch.einsum("kij,...j->...ki", both, mean.flatten(-3)))
    expected = 0.5 * torch.einsum("kij,ij->k", both, root @ root.mT)
    scale = share.square()[..., None]  # not scaled up where columns were shortened
    torch.testing.assert_close(shift.flatten(-3), scale * expected)


def test_what_is_no_covariance_is_replaced_by_its_diagonal():
    good = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    bad = torch.tensor([[4.0, 5.0], [5.0, 4.0]])
    factor = cholesky(torch.stack([good, bad]))
    torch.testing.assert_close(factor[0] @ factor[0].mT, good)
    torch.testing.assert_close(factor[1], torch.diag(torch.tensor([2.0, 2.0])))
    torch.testing.assert_close(cholesky(bad, 10.0), 10 * factor[1])
