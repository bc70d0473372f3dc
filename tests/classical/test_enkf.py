"""The ensemble Kalman filter that is there to be read is the one that others have."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from assim_lib.classical.enkf import enkf
from assim_lib.systems import Lorenz96
from assim_lib.systems.integrators import rollout

NOISE, CYCLES, STATE = 0.7, 30, 4
F64 = torch.float64


@pytest.fixture(scope="module")
def linear():
    """A slowly turning, slightly damped linear model; the sum of two entries and one alone are observed."""
    random = np.random.RandomState(0)
    rotation, _ = np.linalg.qr(random.standard_normal((STATE, STATE)))
    model = torch.from_numpy(0.98 * rotation)
    observe = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]], dtype=F64)
    x, observations = torch.ones(STATE, dtype=F64), []
    for _ in range(CYCLES):
        x = model @ x
        observations.append(observe @ x + NOISE * torch.from_numpy(random.standard_normal(2)))
    return model, observe, observations


def kalman(model, observe, observations):
    mean, covariance = torch.zeros(STATE, dtype=F64), torch.eye(STATE, dtype=F64)
    for y in observations:
        mean, covariance = model @ mean, model @ covariance @ model.T
        gain = covariance @ observe.T @ torch.linalg.inv(observe @ covariance @ observe.T + NOISE**2 * torch.eye(2))
        mean, covariance = mean + gain @ (y - observe @ mean), covariance - gain @ observe @ covariance
        yield mean, covariance


def run(linear, members, seed=0, start=None):
    model, observe, observations = linear
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(members, STATE, generator=generator, dtype=F64) if start is None else start
    return enkf(start, observations, lambda x: x @ model.T, lambda x: x @ observe.T, NOISE, generator)


@pytest.mark.parametrize("what", ["mean", "covariance"])
def test_many_members_make_it_the_kalman_filter(linear, what):
    def distance(members):
        largest = 0.0
        for (mean, covariance), ensemble in zip(kalman(*linear), run(linear, members), strict=True):
            error = ensemble.mean(0) - mean if what == "mean" else torch.cov(ensemble.T) - covariance
            largest = max(largest, float(error.abs().max()))
        return largest

    few, many = distance(100), distance(40_000)
    assert many < 0.03
    # Twenty times the members' square root; sampling errors scatter by less than a factor of three.
    assert 7 < few / many < 60


def test_it_is_dappers(linear, monkeypatch):
    if find_spec("dapper") is None:
        pytest.skip("the baselines need the extra `baselines`")
    from assim_lib.classical import dapper_bridge

    dapper_bridge.import_dapper()
    import dapper.da_methods
    import dapper.mods as modelling

    model, observe, observations = (part.numpy() if torch.is_tensor(part) else part for part in linear)
    start = np.random.RandomState(1).standard_normal((6, STATE))
    hmm = modelling.HiddenMarkovModel(
        Dyn={"M": STATE, "model": lambda x, t, dt: x @ model.T, "noise": 0},
        Obs={"M": 2, "model": lambda x: x @ observe.T, "noise": NOISE**2},
        tseq=modelling.Chronology(dt=1.0, dko=1, K=CYCLES),
        X0=modelling.GaussRV(mu=np.zeros(STATE), C=1.0),  # pyright: ignore[reportArgumentType]
    )
    # The same start, and the same perturbations: ours come from a generator that DAPPER's numbers are drawn from too.
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(hmm.X0, "sample", lambda n: start)
    draw = lambda n: NOISE * torch.randn(n, 2, generator=generator, dtype=F64).numpy()  # noqa: E731
    # DAPPER subtracts its perturbations, we add ours.
    monkeypatch.setattr(hmm.Obs(0).noise, "sample", lambda n: -draw(n))
    analyses = []

    class Recorder:
        trHK = np.empty(CYCLES)

        def assess(self, k, ko=None, faus="u", E=None, **_):
            if k and faus != "f":
                analyses.append(E)

        def write(self, *_):
            pass

    method = dapper.da_methods.EnKF(N=6, upd_a="PertObs")  # pyright: ignore[reportCallIssue]
    with dapper_bridge.quiet_dapper(0, Recorder()):
        method.assimilate(hmm, None, [y.numpy() for y in observations])
    ours = torch.stack(list(run(linear, 6, start=torch.from_numpy(start)))).numpy()
    np.testing.assert_allclose(ours, np.array(analyses), rtol=1e-9, atol=1e-12)


def test_taper_and_inflation_let_ten_members_track_lorenz_96():
    system, seen, source = Lorenz96(), slice(None, None, 2), torch.Generator().manual_seed(3)
    states = system.on_attractor(11, source)
    truth, site = rollout(lambda x: system.flow(x, 2), states[0], 150)[1:, 0], torch.arange(40)
    observations = truth[:, seen] + 0.5 * torch.randn(150, 20, generator=source, dtype=F64)
    apart = torch.minimum((site[:, None] - site).abs(), 40 - (site[:, None] - site).abs())

    def error(**options):
        def flow(x):
            return system.flow(x[:, None], 2)[:, 0]

        analyses = enkf(states[1:, 0], observations, flow, lambda x: x[..., seen], 0.5, source, **options)
        means = torch.stack([ensemble.mean(0) for ensemble in analyses])
        return float((means - truth).square().mean(1).sqrt()[100:].mean())

    assert error(inflation=1.1, taper=torch.exp(-0.5 * (apart / 4.0) ** 2).to(F64)) < 0.6
    assert error() > 2.0
