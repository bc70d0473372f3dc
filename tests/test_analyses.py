"""An analysis corrects what was seen, in every place of the ring and for every member alike; the hybrid one is a Kalman filter."""

import numpy as np
import pytest
import torch
from small import CASES, SCALES, SITES, generator, scales, shaken, small_analysis

from assim_lib import analyses
from assim_lib import kalman as kalman_module
from assim_lib.analyses import (
    ANALYSES,
    Analysis,
    AnalysisInput,
    RecurrentAnalysis,
    Scales,
    covariance_band,
    register_analysis,
    remember,
)
from assim_lib.evaluation import rmse
from assim_lib.experiments import configure
from assim_lib.kalman import HybridAnalysis
from assim_lib.networks import NETWORKS
from assim_lib.runs import build_filter, run_filter
from assim_lib.trajectories import load_test_set

BATCHES = [(), (64,)]
OPERATORS = 3
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def given(analysis, batch=(), seed=0, sites=SITES, share=0.5) -> AnalysisInput:
    """Random numbers in every place; about a half of the sites is seen."""
    source = generator(seed)

    def normal(*shape):
        return torch.randn((*batch, *shape), generator=source, dtype=torch.float64)

    state = (analysis.members, analysis.channels, sites)
    base = 2 + 3 * normal(*state)
    forecast = base + normal(*state) if analysis.lagged else base
    mask = (torch.rand((*batch, *state[1:]), generator=source) < share).double()
    size = analysis.channels * sites
    states = torch.randn((2 * size, *state[1:]), generator=source, dtype=torch.float64)
    memory = analysis.initial_memory(*batch, climatology=states).clone()
    memory[..., : analysis.memory] += 0.5 * normal(*memory.shape[len(batch) : -1], analysis.memory)
    return AnalysisInput(
        base=base,
        forecast=forecast,
        predicted=forecast,
        observation=2 + 3 * normal(*state[1:]),
        mask=mask,
        phase=torch.randint(OPERATORS, batch, generator=source),
        tendency=8 * normal(*state),
        memory=memory,
        sensitivity=torch.eye(size).double() + 0.1 * normal(size, size),
    )


def turned(given: AnalysisInput, shift: int, analysis: Analysis) -> AnalysisInput:
    fields = {k: v for k, v in given._asdict().items() if k not in ("phase", "sensitivity", "memory")}
    by_place = given.sensitivity.unflatten(-1, given.mask.shape[-2:]).unflatten(-3, given.mask.shape[-2:])
    return given._replace(
        **{k: v.roll(shift, -1) for k, v in fields.items()},
        sensitivity=by_place.roll((shift, shift), (-1, -3)).flatten(-2).flatten(-3, -2),
        memory=turned_memory(given.memory, shift, analysis),
    )


def turned_memory(memory, shift, analysis):
    learned, rows = memory[..., : analysis.memory], memory[..., analysis.memory :]
    if analysis.carries_covariance:
        rows = rows.unflatten(-1, (analysis.channels, analysis.channels, -1)).roll(shift, -1).flatten(-3)
    return torch.cat([learned, rows], -1).roll(shift, -2)


@pytest.fixture(params=[False, True], ids=["now", "lagged"])
def lagged(request):
    return request.param


@pytest.fixture(params=NETWORKS)
def network(request):
    return request.param


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-m{case[1]}")
def analysis(request, lagged, network):
    """Every analysis with every network, with random weights."""
    name, members = request.param
    return shaken(small_analysis(name, members, lagged=lagged, network=network, operators=OPERATORS))


# ---- what holds for all of them


@pytest.mark.parametrize("batch", BATCHES)
def test_shapes(analysis, batch):
    x = given(analysis, batch)
    corrected, memory = analysis(x)
    assert corrected.shape == x.base.shape == (*batch, analysis.members, 1, SITES)
    assert memory.shape == x.memory.shape
    assert corrected.isfinite().all()
    assert (corrected != x.base).any()
    assert (memory != x.memory).any()


def test_gradients_reach_every_parameter(analysis):
    x = given(analysis, (64,))  # in which every phase of the schedule occurs
    corrected, memory = analysis(x)
    (corrected.square().sum() + memory.square().sum()).backward()
    learned = [(name, p) for name, p in analysis.named_parameters() if p.requires_grad]
    unmoved = [name for name, p in learned if p.grad is None or not p.grad.abs().max() > 0]
    assert unmoved == []


def test_a_batch_is_its_trajectories_one_by_one(analysis):
    x = given(analysis, (64,))
    together = analysis(x)
    for i in (0, 17, 63):
        alone = analysis(AnalysisInput(*(part[i] for part in x)))
        for one, all_ in zip(alone, together, strict=True):
            torch.testing.assert_close(one, all_[i], **EXACT)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("name", "members"), CASES)
def test_turning_the_ring_turns_the_analysis(name, members, channels, lagged):
    band = 0 if name in ("recurrent", "extended") else 2
    analysis = shaken(small_analysis(name, members, channels=channels, lagged=lagged, band=band))
    x = given(analysis, (3,))
    corrected, memory = analysis(x)
    corrected_after, memory_after = analysis(turned(x, 5, analysis))
    torch.testing.assert_close(corrected_after, corrected.roll(5, -1), **EXACT)
    torch.testing.assert_close(memory_after, turned_memory(memory, 5, analysis), **EXACT)


def test_members_have_no_order(analysis):
    x, order = given(analysis, (2,)), torch.randperm(analysis.members, generator=generator())

    def reordered(part, dim=-3):
        return part.index_select(dim, order)

    of_members = {k: reordered(getattr(x, k)) for k in ("base", "forecast", "predicted", "tendency")}
    if analysis.memory_per_member:
        of_members["memory"] = reordered(x.memory)
    corrected, memory = analysis(x)
    corrected_after, memory_after = analysis(x._replace(**of_members))
    torch.testing.assert_close(corrected_after, reordered(corrected), **EXACT)
    torch.testing.assert_close(memory_after, reordered(memory) if analysis.memory_per_member else memory, **EXACT)


def test_what_is_not_seen_has_no_influence(analysis):
    x = given(analysis, (3,))
    elsewhere = torch.where(x.mask > 0, x.observation, x.observation + 100)
    for one, other in zip(analysis(x), analysis(x._replace(observation=elsewhere)), strict=True):
        torch.testing.assert_close(one, other, **EXACT)
    seen = torch.where(x.mask > 0, x.observation + 1, x.observation)
    assert (analysis(x._replace(observation=seen))[0] - analysis(x)[0]).abs().max() > 1e-3


def test_the_forecast_matters_where_there_is_a_lag(analysis):
    x = given(analysis, (3,))
    other = analysis(x._replace(forecast=x.forecast + 1, predicted=x.predicted + 1))[0]
    if analysis.lagged:
        assert (other - analysis(x)[0]).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "members"), CASES)
def test_an_untrained_correction_is_the_classical_part_alone(name, members, lagged):
    analysis = small_analysis(name, members, lagged=lagged)
    x = given(analysis, (3,))
    corrected = analysis(x)[0]
    if name == "recurrent":
        assert torch.equal(corrected, x.base)
    if name == "original":  # the gates are open
        open_ = torch.sigmoid(torch.tensor(3.0, dtype=torch.float64))
        torch.testing.assert_close(corrected - SCALES.mean, open_ * (x.base - SCALES.mean), **EXACT)


@pytest.mark.parametrize(("name", "members"), CASES)
def test_units_do_not_matter(name, members):
    """The same world in other units: same weights, same analysis."""
    unit, origin = 7.0, -20.0
    converted = scales(origin + unit * 2.3, unit * 3.6, unit * SCALES.noise)
    ours, theirs = (shaken(small_analysis(name, members, scales=s)) for s in (SCALES, converted))
    x = given(ours)
    states = {k: origin + unit * getattr(x, k) for k in ("base", "forecast", "predicted", "observation")}
    corrected = theirs(x._replace(**states, tendency=unit * x.tendency))[0]
    torch.testing.assert_close(corrected, origin + unit * ours(x)[0], **EXACT)


@pytest.mark.parametrize("name", ANALYSES)
def test_each_channel_has_its_own_unit(name, lagged, network):
    """What an observation error is worth is one number for all channels: beside it, units do not matter."""
    unit, origin = torch.tensor([[7.0], [0.1]]).double(), torch.tensor([[-20.0], [3.0]]).double()
    same = scales(channels=2)
    converted = Scales(origin + unit * same.mean, unit * same.std, same.noise)
    settings = {"channels": 2, "lagged": lagged, "network": network, "operators": OPERATORS}
    settings["band"] = 2 * (name != "recurrent")
    ours, theirs = (shaken(small_analysis(name, 4, scales=s, **settings)) for s in (same, converted))
    # The original method has no innovations; the others see nothing here, and what they do remains.
    x = given(ours, (3,), share=0.5 if name == "original" else 0.0)
    states = {k: origin + unit * getattr(x, k) for k in ("base", "forecast", "predicted", "observation")}
    corrected, memory = theirs(x._replace(**states, tendency=unit * x.tendency))
    expected, expected_memory = ours(x)
    nearly = {"rtol": 0, "atol": 1e-3}  # the floor under a spread has a unit
    torch.testing.assert_close(corrected, origin + unit * expected, **nearly)
    torch.testing.assert_close(memory, expected_memory, **nearly)
    assert (expected - x.base).abs().max() > 0.1


@pytest.mark.parametrize("channels", [1, 2])
def test_scales_are_those_of_each_channel(channels):
    states = torch.randn((50, channels, SITES), generator=generator(), dtype=torch.float64)
    states = states * torch.tensor([[3.0], [0.2]])[:channels] + torch.tensor([[1.0], [-5.0]])[:channels]
    found = Scales.of(states, 0.7)
    assert found.noise == 0.7
    assert found.mean.shape == found.std.shape == (channels, 1)
    for c in range(channels):
        assert float(found.mean[c]) == pytest.approx(states[:, c].numpy().mean(), rel=1e-12)
        assert float(found.std[c]) == pytest.approx(states[:, c].numpy().std(ddof=1), rel=1e-12)


# ---- inflation


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("inflation", [0.7, 1.3])
@pytest.mark.parametrize("name", ["original", "recurrent"])
def test_inflation_multiplies_the_perturbations_and_leaves_the_mean(name, inflation, batch):
    plain, inflated = (shaken(small_analysis(name, 4, inflation=factor)) for factor in (1.0, inflation))
    x = given(plain, batch)
    (expected, expected_memory), (corrected, memory) = plain(x), inflated(x)
    mean = expected.mean(-3, keepdim=True)
    torch.testing.assert_close(corrected.mean(-3, keepdim=True), mean, **EXACT)
    torch.testing.assert_close(corrected - mean, inflation * (expected - mean), **EXACT)
    assert torch.equal(memory, expected_memory)


def test_the_hybrid_starts_where_it_is_told():
    analysis = small_analysis("hybrid", 4, inflation=1.25, taper_length=2.5)
    learned = {name: float(p.detach().exp()) for name, p in analysis.named_parameters() if name.startswith("log_")}
    assert learned == pytest.approx({"log_inflation": 1.25, "log_taper_length": 2.5})


@pytest.mark.parametrize("name", ANALYSES)
def test_dropout_needs_a_generator(name, network):
    analysis = shaken(small_analysis(name, 4, dropout=0.5, network=network, operators=OPERATORS))
    x = given(analysis)
    assert torch.equal(analysis(x)[0], analysis(x)[0])
    assert torch.equal(analysis(x, generator(1))[0], analysis(x, generator(1))[0])
    assert not torch.equal(analysis(x, generator(1))[0], analysis(x)[0])


@pytest.mark.parametrize("name", ["recurrent", "hybrid"])
def test_the_memory_stays_bounded(name):
    analysis = shaken(small_analysis(name, 4), size=3.0)
    x = given(analysis)
    x = x._replace(memory=torch.zeros_like(x.memory))
    for _ in range(50):
        x = x._replace(memory=analysis(x)[1])
        assert x.memory.abs().max() <= 1
    assert x.memory.abs().max() > 0.5


def test_remember_keeps_or_writes():
    memory, write, far = torch.tensor([0.3, -0.9]), torch.tensor([0.5, -1.0]), torch.full((2,), 40.0)
    torch.testing.assert_close(remember(memory, far, write), memory)
    torch.testing.assert_close(remember(memory, -far, write), write.tanh())
    torch.testing.assert_close(remember(memory, 0 * far, write), (memory + write.tanh()) / 2)


@pytest.mark.parametrize("name", ["original", "hybrid"])
def test_a_single_member_has_no_covariances(name):
    with pytest.raises(ValueError, match=r"^m = 1 is too small for this analysis, [^\n]+ works with m = 1\)\.$"):
        small_analysis(name, 1)


# ---- the registry


def test_a_readers_analysis_may_be_defined_again():
    try:
        for step in (1.0, 2.0):

            @register_analysis("mine")
            class Mine(RecurrentAnalysis):
                def forward(self, given, generator=None, step=step):
                    return given.base + step, given.memory

            analysis = small_analysis("mine", 2)
            x = given(analysis)
            torch.testing.assert_close(analysis(x)[0], x.base + step)
            assert ANALYSES.find("mine") is Mine
    finally:
        del ANALYSES["mine"]


def test_tests_leave_no_analysis_behind():
    assert {analysis.__module__ for analysis in ANALYSES.values()} == {analyses.__name__, kalman_module.__name__}


@pytest.mark.parametrize("name", ANALYSES)
def test_the_librarys_names_are_taken(name):
    before = ANALYSES[name]
    with pytest.raises(ValueError, match=rf"^analysis = '{name}' is the library's own already; choose another name\.$"):
        register_analysis(name)(type("Mine", (RecurrentAnalysis,), {"__module__": "notebook"}))
    assert ANALYSES[name] is before


# ---- covariances among the features


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("width", [0, 1, 3])
def test_the_band_holds_numpys_covariances(batch, width):
    members, channels = 5, 2
    x = torch.randn((*batch, members, channels, SITES), generator=generator(), dtype=torch.float64)
    band = covariance_band(x - x.mean(-3, keepdim=True), width)
    assert band.shape == (*batch, channels * (width + 1), SITES)
    first = x.reshape(-1, *x.shape[-3:])[0].numpy()
    band = band.reshape(-1, width + 1, channels, SITES)[0]
    for c in range(channels):
        covariance = np.cov(first[:, c].T)
        for k in range(width + 1):
            expected = [covariance[i, (i + k) % SITES] for i in range(SITES)]
            np.testing.assert_allclose(band[k, c], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "factor", "distances"), [("original", 1, (0, 1, 2)), ("hybrid", 16, (1, 2))])
def test_covariances_are_among_the_features(name, factor, distances):
    analysis = small_analysis(name, 4, band=2)
    x, seen = given(analysis, share=0.0), []
    analysis.trunk.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    analysis(x)
    (features,) = seen
    covariance = np.cov((x.base[:, 0] / float(SCALES.std)).T)
    columns = features.reshape(-1, *features.shape[-2:])[0].T
    for k in distances:
        expected = torch.tensor([factor * covariance[i, (i + k) % SITES] for i in range(SITES)])
        assert any(torch.allclose(column, expected) for column in columns)


# ---- the classical part of the hybrid analysis


def kalman(members, length, inflation, kind="hybrid", **options):
    """The hybrid analysis with these numbers in float64: its own are logarithms in float32."""
    analysis = small_analysis(kind, members, taper_length=length, inflation=inflation, **options)
    for parameter, value in ((analysis.log_taper_length, length), (analysis.log_inflation, inflation)):
        assert float(parameter.detach().exp()) == pytest.approx(value, rel=1e-5)
        parameter.data.fill_(np.log(value))
    return analysis


def ring_taper(channels, sites, length):
    place = np.tile(np.arange(sites), channels)
    return np.exp(-(chord(place[:, None], place, sites) ** 2) / (2 * length**2))


def chord(one, other, sites):
    """Straight from site to site, where neighbours on the circle are about 1 apart."""
    angles = np.stack(np.broadcast_arrays(one, other)) * 2 * np.pi / sites
    return np.abs(np.exp(1j * angles[0]) - np.exp(1j * angles[1])) * sites / (2 * np.pi)


def localized_denkf(base, predicted, observation, mask, noise, length, inflation, drift=0.0):
    """Sakov & Oke (2008), with tapered covariances, in NumPy, site by site and with the seen sites alone."""
    members, channels, sites = base.shape
    seen = np.flatnonzero(mask.ravel())
    state, hx = base.reshape(members, -1), predicted.reshape(members, -1)[:, seen]
    a, y = state - state.mean(0), hx - hx.mean(0)
    place = np.tile(np.arange(sites), channels)
    taper, moved = np.empty((2, channels * sites, channels * sites))
    for i in range(channels * sites):
        for j in range(channels * sites):
            # What was at site i at the time of the base is at i + drift when site j is seen.
            for matrix, origin in ((taper, place[i]), (moved, place[i] + drift)):
                matrix[i, j] = np.exp(-(chord(origin, place[j], sites) ** 2) / (2 * length**2))
    cross = moved[:, seen] * (a.T @ y) / (members - 1)
    covariance = taper[np.ix_(seen, seen)] * (y.T @ y) / (members - 1)
    gain = cross @ np.linalg.inv(covariance + noise**2 * np.eye(len(seen)))
    mean = state.mean(0) + gain @ (observation.ravel()[seen] - hx.mean(0))
    return (mean + inflation * (a - 0.5 * y @ gain.T)).reshape(base.shape)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize(
    ("noise", "length", "inflation", "drift"), [(1.0, 3.0, 1.03, 0.0), (0.3, 1.5, 1.2, 0.0), (0.3, 1.5, 1.2, -2.5)]
)
def test_the_untrained_hybrid_is_a_localized_denkf(lagged, batch, channels, share, noise, length, inflation, drift):
    seen_as = SCALES._replace(noise=noise)
    analysis = kalman(5, length, inflation, channels=channels, scales=seen_as, lagged=lagged, drift=drift)
    x = given(analysis, batch, share=share)
    corrected = analysis(x)[0]
    trajectories = [part.reshape(-1, *part.shape[len(batch) :])[:3].numpy() for part in x]
    for i, ours in enumerate(corrected.reshape(-1, 5, channels, SITES)[:3]):
        base, _, predicted, observation, mask, *_ = (part[i] for part in trajectories)
        expected = localized_denkf(base, predicted, observation, mask, noise, length, inflation, drift)
        np.testing.assert_allclose(ours.detach(), expected, rtol=1e-9, atol=1e-9)


def test_without_localization_the_hybrid_has_the_kalman_gain():
    """An ensemble with exactly the mean and covariance of the Gaussian prior."""
    sites, members, noise = 6, 200, 0.7
    random = np.random.RandomState(0)
    root, mean = random.standard_normal((sites, sites)), random.standard_normal(sites)
    covariance, observation = root @ root.T, 3 * random.standard_normal(sites)
    mask = np.array([1.0, 0, 1, 1, 0, 0])
    operator = np.eye(sites)[mask > 0]
    gain = covariance @ operator.T @ np.linalg.inv(operator @ covariance @ operator.T + noise**2 * np.eye(3))
    expected = mean + gain @ operator @ (observation - mean)

    sample = random.standard_normal((members, sites))
    sample -= sample.mean(0)
    white = sample @ np.linalg.inv(np.linalg.cholesky(np.cov(sample.T))).T
    ensemble = torch.from_numpy(mean + white @ root.T)[:, None]
    analysis = kalman(members, 1e6, 1.0, scales=scales(0.0, 1.0, noise))
    corrected, _ = analysis(
        AnalysisInput(
            base=ensemble,
            forecast=ensemble,
            predicted=ensemble,
            observation=torch.from_numpy(observation)[None],
            mask=torch.from_numpy(mask)[None],
            phase=torch.tensor(0),
            tendency=torch.zeros_like(ensemble),
            memory=torch.zeros(1, sites, 3, dtype=torch.float64),
        )
    )
    corrected = corrected[:, 0].detach().numpy()
    assert np.abs(expected - mean).max() > 1
    np.testing.assert_allclose(corrected.mean(0), expected, atol=1e-8)
    left = np.eye(sites) - 0.5 * gain @ operator  # the perturbations move by half the gain
    np.testing.assert_allclose(np.cov(corrected.T), left @ covariance @ left.T, atol=1e-8)


# ---- covariant localization


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("channels", [1, 2])
def test_the_untrained_covariant_mean_is_that_of_the_localized_covariance(batch, channels):
    noise, length = 0.7, 2.0
    analysis = kalman(4, length, 1.0, kind="covariant", channels=channels, scales=SCALES._replace(noise=noise))
    x = given(analysis, batch)
    corrected = analysis(x)[0]
    parts = [part.reshape(-1, *part.shape[len(batch) :])[:3].numpy() for part in x]
    for i, ours in enumerate(corrected.reshape(-1, 4, channels, SITES)[:3]):
        base, _, predicted, observation, mask, *_, sensitivity = (part[i] for part in parts)
        seen, state = np.flatnonzero(mask.ravel()), base.reshape(4, -1)
        covariance = ring_taper(channels, SITES, length) * np.cov(state.T)
        operator = sensitivity[seen]
        gain = (
            covariance @ operator.T @ np.linalg.inv(operator @ covariance @ operator.T + noise**2 * np.eye(len(seen)))
        )
        expected = state.mean(0) + gain @ (observation.ravel() - predicted.reshape(4, -1).mean(0))[seen]
        np.testing.assert_allclose(ours.detach().numpy().reshape(4, -1).mean(0), expected, rtol=1e-9, atol=1e-9)


def test_refitted_members_are_nearer_to_the_analysis_covariance():
    """Nearer than those that moved by half the gain: their localized covariance in the Frobenius norm."""
    noise, length = 1.0, 2.0
    analysis = kalman(4, length, 1.0, kind="covariant")
    x = given(analysis, (20,), share=1.0)
    taper = torch.from_numpy(ring_taper(1, SITES, length))

    def localized(ensemble):
        deviations = (ensemble - ensemble.mean(-3, keepdim=True)).flatten(-2)
        return taper * (deviations.mT @ deviations) / 3

    prior = localized(x.base)
    cross = prior @ x.sensitivity.mT
    gain = cross @ torch.linalg.inv(x.sensitivity @ cross + noise**2 * torch.eye(SITES))
    posterior = prior - gain @ cross.mT

    def distance():
        return torch.linalg.matrix_norm(localized(analysis(x)[0]) - posterior)

    refitted = distance()
    analysis.refits = 0
    assert (refitted < distance()).all()
    analysis.refits = 500
    assert (distance() < refitted).all()


@pytest.mark.parametrize("lagged", [False, True])
def test_a_surprising_innovation_widens_a_carried_covariance(lagged):
    """By the ratio of what was seen to what was expected, beyond what chance allows, and not without bound."""
    analysis = small_analysis("extended", 1, lagged=lagged, scales=scales(noise=0.5))
    x = given(analysis, (40,), share=0.7)
    prior = analysis._covariance(x.memory)
    operator = x.mask.flatten(-2).unsqueeze(-1) * x.sensitivity * float(analysis.std)
    variance = (operator @ prior @ operator.mT).diagonal(dim1=-2, dim2=-1) / 0.25
    seen = x.mask.sum((-2, -1))
    deviation = (2 * x.mask.flatten(-2) * (1 + variance) ** 2).sum(-1).sqrt()
    between = 0
    for size in (0.5, 1.5, 2.0, 2.5, 3.0, 4.0, 100.0):
        innovation = (
            size * torch.randn((40, 1, 1, SITES), generator=generator(5), dtype=torch.float64) * x.mask[:, None]
        )
        squares = innovation.square().sum((1, 2, 3))
        expected = ((squares - seen - 3 * deviation) / variance.sum(-1)).clamp(1, 2)
        found = analysis._growth(x, prior, innovation)
        torch.testing.assert_close(found, expected[:, None, None], **EXACT)
        between += int(((found > 1) & (found < 2)).sum())
        if size == 0.5:
            assert (found == 1).all()
        if size == 100.0:
            assert (found == 2).all()
    assert between > 0


def test_the_learned_inflation_is_bounded():
    analysis = small_analysis("hybrid", 4, inflation=1.1)
    x = given(analysis)
    still = analysis(x)[0]
    spread = still.std(-3)
    with torch.no_grad():
        analysis.trunk.head.bias[1] = 1e6  # outputs: correction, inflation, …
    ratio = analysis(x)[0].std(-3) / spread
    torch.testing.assert_close(ratio, torch.full_like(ratio, HybridAnalysis.largest_inflation).exp(), rtol=1e-6, atol=0)


def test_seeing_nothing_leaves_the_hybrid_mean_alone():
    analysis = small_analysis("hybrid", 4, inflation=1.0)
    x = given(analysis, share=0.0)
    torch.testing.assert_close(analysis(x)[0], x.base, **EXACT)


def some_covariance(size: float = 1.0) -> torch.Tensor:
    """Of a state of 12 entries whose variances differ, in units of the climatology."""
    root = torch.randn(12, 30, generator=generator(3), dtype=torch.float64) * torch.linspace(0.3, 1.5, 12)[:, None]
    return size * root @ root.mT / 30


def test_nothing_is_less_certain_than_in_the_climatology():
    analysis, covariance = small_analysis("extended", 1), some_covariance()
    bounded = analysis._bounded(covariance)
    variances = covariance.diagonal()
    assert (variances > 1).any()
    assert (variances < 1).any()
    torch.testing.assert_close(bounded.diagonal(), variances.clamp(max=1.0))
    correlations = [c / c.diagonal().sqrt() / c.diagonal().sqrt()[:, None] for c in (covariance, bounded)]
    torch.testing.assert_close(*correlations)
    small = some_covariance(0.01)
    torch.testing.assert_close(analysis._bounded(small), small)


@pytest.mark.parametrize("length", [0.5, 3.0, 12.0, 100.0])
@pytest.mark.parametrize("sites", [11, 40])
def test_a_taper_is_a_covariance(length, sites):
    analysis, like = kalman(4, length, 1.0, sites=sites), torch.ones(1, sites, dtype=torch.float64)
    taper = analysis._taper(like).detach()
    torch.testing.assert_close(taper, torch.from_numpy(ring_taper(1, sites, length)))
    torch.testing.assert_close(taper.diagonal(), torch.ones(sites, dtype=torch.float64))
    assert torch.linalg.eigvalsh(taper).min() > -1e-12


def test_the_localization_follows_the_expected_error():
    analysis, like = small_analysis("extended", 1, taper_length=0.8), torch.ones(1, 12, dtype=torch.float64)
    for size in (0.05, 0.5):
        covariance = some_covariance(size)
        reach = 0.8 / covariance.diagonal().mean()
        kept = analysis._followed(like, covariance) / covariance
        for distance in (0, 1, 4):
            expected = torch.exp(-0.5 * (chord(0, distance, 12) / reach) ** 2).expand(12 - distance)
            torch.testing.assert_close(kept.diagonal(distance), expected)
    batch = torch.stack([some_covariance(0.05), some_covariance(0.5)])
    one_by_one = torch.stack([analysis._followed(like, c) for c in batch])
    torch.testing.assert_close(analysis._followed(like.expand(2, 1, 12), batch), one_by_one)


def test_what_is_no_covariance_is_replaced_by_its_diagonal():
    good = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    bad = torch.tensor([[4.0, 5.0], [5.0, 4.0]])
    factor = kalman_module._cholesky(torch.stack([good, bad]))
    torch.testing.assert_close(factor[0] @ factor[0].mT, good)
    torch.testing.assert_close(factor[1], torch.diag(torch.tensor([2.0, 2.0])))
    torch.testing.assert_close(kalman_module._cholesky(bad, 10.0), 10 * factor[1])


def test_a_hybrid_with_a_long_taper_tracks():
    """Its reach is more than half of the circle: a taper that is no covariance would leave none to be inverted."""
    experiment = configure("l96_conv", analysis="hybrid", m=20, lag=0, noise=0.3, taper_length=14.0, drift=0.0)
    data = load_test_set("l96", "full_obs", 0.1, 0.3, "validation")
    ensemble, _ = run_filter(experiment, build_filter(experiment), data, cycles=200)
    assert rmse(ensemble, data.truth[1:201])[50:].max() < 0.5
