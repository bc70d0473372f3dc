"""On a large ring the update is that of windows, and the same."""

from types import MethodType

import pytest
import torch
from small import climatology, generator, given, small_analysis
from test_ensemble_kalman import kalman

from assim_lib.analyses.windows import Windows
from assim_lib.systems import KuramotoSivashinsky, Lorenz96

SITES = 66  # no multiple of the cores below


@pytest.mark.parametrize(("sites", "core", "margin"), [(12, 4, 2), (13, 4, 3), (66, 20, 16)])
@pytest.mark.parametrize("axes", [2, 3])
def test_cores_of_windows_make_the_ring(sites, core, margin, axes):
    windows = Windows(sites, core, margin)
    x = torch.randn(5, 3, 2, sites, generator=generator())
    parts = windows.split(x, axes)
    number = -(-sites // core)
    assert parts.shape == (*x.shape[: 4 - axes], number, *x.shape[4 - axes : -1], core + 2 * margin)
    torch.testing.assert_close(windows.join(parts, axes), x)
    some = [part.join(part.split(x, axes), axes) for part in windows.parts(3)]
    assert len(some) == -(-number // 3)
    torch.testing.assert_close(torch.cat(some, -1), x)
    assert Windows.of(sites, core, margin, sites) == windows
    assert Windows.of(sites, core, margin, sites + 1) is None


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("lag", "drift"), [(0, 0.0), (4, 0.5)])
def test_the_local_hybrid_is_the_dense_one(batch, channels, lag, drift, monkeypatch):
    monkeypatch.setattr(Windows.parts, "__defaults__", (3,))
    analysis = kalman(6, 1.5, 1.05, sites=SITES, channels=channels, lag=lag, drift=drift)
    x = given(analysis, batch, sites=SITES)
    # Members as far apart as those of a filter that has found the truth: about as far as the observations err.
    close = {name: 0.3 * getattr(x, name) for name in ("base", "forecast", "predicted")}
    x = x._replace(**close)
    dense = analysis(x).base
    analysis.local_from, analysis.core = SITES, 20
    assert analysis.windows(SITES) is not None
    torch.testing.assert_close(analysis(x).base, dense, rtol=0, atol=1e-5)


def nearby_covariance(variance: float) -> torch.Tensor:
    """The same everywhere, and none between sites that are far apart."""
    place = torch.arange(SITES, dtype=torch.float64)
    chord = SITES / torch.pi * torch.sin((place[:, None] - place) * torch.pi / SITES)
    return variance * torch.exp(-0.5 * (chord / 1.5) ** 2)


@pytest.mark.parametrize("batch", [(), (3,)])
def test_the_local_extended_update_and_forecast_are_the_dense_ones(batch, monkeypatch):
    """Where covariances and news reach no farther than the margins."""
    monkeypatch.setattr(Windows.parts, "__defaults__", (3,))
    model, windows = Lorenz96(sites=SITES), Windows(SITES, 20, 22)
    analysis = small_analysis("extended", 1, sites=SITES, lag=1, taper_length=0.5)
    states = climatology(SITES)[:3].unsqueeze(1)
    base = states if batch else states[0]
    noise = torch.randn(base.shape, generator=generator(2), dtype=torch.float64)
    covariance = nearby_covariance(3e-3).expand(*batch, -1, -1)
    forecast = model.flow(base, 2)
    x = given(analysis, batch, sites=SITES, share=0.7)
    x = x._replace(
        base=base,
        forecast=forecast,
        predicted=forecast,
        observation=(forecast + 0.5 * noise).squeeze(-3) * x.mask,
        covariance=covariance,
        predict=lambda s: model.flow(s, 2),
    )
    dense = analysis(x)
    following, later = analysis.forecast(dense.base, dense.covariance, lambda s: model.flow(s, 2))

    analysis.windows = MethodType(lambda _self, _sites: windows, analysis)
    inside = windows.places(x.mask.device)
    pairs = inside[:, :, None], inside[:, None, :]
    local = analysis(x._replace(covariance=covariance[..., pairs[0], pairs[1]]))
    torch.testing.assert_close(local.base, dense.base, rtol=0, atol=1e-5)
    assert (dense.base - base).abs().max() > 0.05
    core = slice(windows.margin, windows.margin + windows.core)

    def assert_same_cores(one, other):
        expected = other[..., pairs[0], pairs[1]][..., core, core]
        torch.testing.assert_close(one[..., core, core], expected, rtol=0, atol=1e-5)  # of the climatology

    assert_same_cores(local.covariance, dense.covariance)
    there, then = analysis.forecast(local.base, local.covariance, lambda s: model.flow(s, 2))
    torch.testing.assert_close(there, following, rtol=0, atol=1e-4)
    assert_same_cores(then, later)
    start = analysis.initial_covariance(*batch, climatology=climatology(SITES))
    members = analysis.sample_members(base, start, 7, generator())
    assert members.shape == (*batch, 7, 1, SITES)


def test_a_part_of_the_ring_can_be_closed_to_a_smaller_one():
    small = KuramotoSivashinsky(sites=32, length=25.0)
    large = KuramotoSivashinsky(sites=64, length=50.0)
    x = small.on_attractor(1, generator(), spinup=50.0)
    torch.testing.assert_close(large.flow(x, 4), small.flow(x, 4))
    torch.testing.assert_close(large.flow(x.repeat(1, 1, 2), 4)[..., :32], small.flow(x, 4))
