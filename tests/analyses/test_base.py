"""Every analysis corrects what was seen, in every place of the ring and for every member alike."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small import (
    CASES,
    SITES,
    Linear,
    generator,
    given,
    normalization,
    predicted_each,
    shaken,
    small_analysis,
    small_filter,
)

from assim_lib.analyses import ANALYSES, Analysis, Corrected, Normalization, register_analysis
from assim_lib.analyses.base import covariance_band, remember
from assim_lib.analyses.neural import RecurrentAnalysis
from assim_lib.systems import Lorenz96
from assim_lib.tracking import assimilate

BATCHES = [(), (64,)]
OPERATORS = 3
EXACT = {"rtol": 1e-10, "atol": 1e-10}
MEMBER_BY_MEMBER = ("original", "gated")
# The memory of those that remember by keeping and adding is not bounded.
BOUNDED = [name for name in ANALYSES if name not in MEMBER_BY_MEMBER]
with_every_case = pytest.mark.parametrize(("name", "members"), CASES)


@pytest.fixture(params=[0, 2], ids=["now", "lagged"])
def lag(request):
    return request.param


@pytest.fixture(params=[(0, "conv"), (2, "conv"), (2, "original"), (0, "ff_per_operator"), (2, "ff")], ids=str)
def variant(request):
    return dict(zip(("lag", "network"), request.param, strict=True))


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-m{case[1]}")
def analysis(request, variant):
    """Every analysis with several networks, with random weights."""
    return shaken(small_analysis(*request.param, operators=OPERATORS, **variant))


def parts(corrected: Corrected):
    return [part for part in corrected if part is not None]


def alone(x, i):
    """The input of one trajectory of a batch."""
    shared = {"error": x.error, "error_variance": x.error_variance, "predict": Linear(x.predict.matrix[i])}
    own = {name: None if part is None else part[i] for name, part in x._asdict().items() if name not in shared}
    return type(x)(**own, **shared)


# ---- what holds for all of them


@pytest.mark.parametrize("batch", BATCHES)
def test_what_is_corrected_has_the_shape_of_what_was_given(analysis, batch):
    x = given(analysis, batch, operators=OPERATORS)
    corrected = analysis(x)
    assert corrected.base.shape == (*batch, analysis.members, 1, SITES)
    assert (corrected.covariance is None) == (x.covariance is None)
    for after, before in zip(parts(corrected), parts(Corrected(x.base, x.memory, x.covariance)), strict=True):
        assert after.shape == before.shape
        assert after.isfinite().all()
        assert (after != before).any()


def test_gradients_reach_every_parameter(analysis):
    corrected = analysis(given(analysis, (64,), operators=OPERATORS))  # in which every phase of the schedule occurs
    sum(part.square().sum() for part in parts(corrected)).backward()
    learned = [(name, p) for name, p in analysis.named_parameters() if p.requires_grad]
    assert [name for name, p in learned if p.grad is None or not p.grad.abs().max() > 0] == []


def test_a_batch_is_its_trajectories_one_by_one(analysis):
    x = given(analysis, (64,), operators=OPERATORS)
    together = parts(analysis(x))
    for i in (0, 17, 63):
        for one, all_ in zip(parts(analysis(alone(x, i))), together, strict=True):
            torch.testing.assert_close(one, all_[i], **EXACT)


def turned(x, shift):
    """The same on a ring that is turned."""
    by_state = ("memory", "covariance", "phase", "predict", "predict_each")
    fields = {name: part for name, part in x._asdict().items() if part is not None and name not in by_state}
    fields = {name: part.roll(shift, -1) for name, part in fields.items()}

    def predict(states):
        return x.predict(states.roll(-shift, -1)).roll(shift, -1)

    return x._replace(
        **fields,
        memory=x.memory.roll(shift, -2),
        covariance=turned_covariance(x.covariance, shift),
        predict=predict,
        predict_each=x.predict_each and predicted_each(predict, x.recent.shape[-4]),
    )


def turned_covariance(covariance, shift):
    if covariance is None:
        return None
    by_place = covariance.unflatten(-1, (-1, SITES)).unflatten(-3, (-1, SITES))
    return by_place.roll((shift, shift), (-1, -3)).flatten(-2).flatten(-3, -2)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("network", ["conv", "original"])
@with_every_case
def test_turning_the_ring_turns_the_analysis(name, members, network, channels, lag):
    band = {} if name in ("recurrent", "extended") else {"band": 2}
    assert_turned(shaken(small_analysis(name, members, channels=channels, network=network, lag=lag, **band)))


@pytest.mark.parametrize("channels", [1, 2])
def test_turning_the_ring_turns_what_the_window_says(channels):
    options = {"channels": channels, "lag": 2, "sees_gradient": True, "sees_window": True}
    assert_turned(shaken(small_analysis("recurrent", 2, **options)))


def assert_turned(analysis):
    x = given(analysis, (3,))
    base, memory, covariance = analysis(x)
    after = analysis(turned(x, 5))
    expected = Corrected(base.roll(5, -1), memory.roll(5, -2), turned_covariance(covariance, 5))
    for ours, theirs in zip(parts(after), parts(expected), strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@with_every_case
def test_members_have_no_order(name, members, lag):
    analysis = shaken(small_analysis(name, members, lag=lag))
    x, order = given(analysis, (2,)), torch.randperm(members, generator=generator())
    if name in MEMBER_BY_MEMBER:
        order = torch.arange(members).roll(1)  # where nothing is seen, each looks at the one before it

    def reordered(part):
        return part.index_select(-3, order)

    moved = {name: reordered(getattr(x, name)) for name in ("base", "forecast", "predicted", "tendency")}
    remembered = reordered if analysis.memory_per_member else torch.clone
    before, after = analysis(x), analysis(x._replace(**moved, memory=remembered(x.memory)))
    torch.testing.assert_close(after.base, reordered(before.base), **EXACT)
    torch.testing.assert_close(after.memory, remembered(before.memory), **EXACT)


def test_what_is_seen_or_forecast_has_an_influence_and_nothing_else(analysis):
    x = given(analysis, (3,), operators=OPERATORS)
    before = parts(analysis(x))
    unseen = x._replace(observation=x.observation + 100 * (1 - x.mask))
    for one, other in zip(before, parts(analysis(unseen)), strict=True):
        torch.testing.assert_close(one, other, **EXACT)
    changes = [{"observation": x.observation + x.mask}]
    if analysis.lagged:
        changes.append({"forecast": x.forecast + 1, "predicted": x.predicted + 1})
    for change in changes:
        assert (analysis(x._replace(**change)).base - before[0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", [name for name in ANALYSES if name != "original"])  # which sees raw numbers
def test_units_do_not_matter(name, variant):
    """The same world in other units, another one for each channel: same weights, same analysis."""
    unit, origin = torch.tensor([[7.0], [0.1]]).double(), torch.tensor([[-20.0], [3.0]]).double()
    same = normalization(channels=2)
    converted = Normalization(origin + unit * same.mean, unit * same.std)
    options = {"channels": 2, "operators": OPERATORS, **variant}
    options |= {} if name in ("recurrent", "extended") else {"band": 2}
    members = 1 if name == "extended" else 4
    ours, theirs = (shaken(small_analysis(name, members, normalization=n, **options)) for n in (same, converted))
    x = given(ours, (3,), operators=OPERATORS)
    states = {k: origin + unit * getattr(x, k) for k in ("base", "forecast", "predicted")}
    corrected = theirs(
        x._replace(
            **states,
            observation=(origin + unit * x.observation) * x.mask,
            error=unit * x.error,
            error_variance=(unit * x.error).square(),
            tendency=unit * x.tendency,
            predict=lambda states: origin + unit * x.predict((states - origin) / unit),
        )
    )
    expected = ours(x)
    assert (expected.base - x.base).abs().max() > 0.1
    expected = expected._replace(base=origin + unit * expected.base)
    for found, right in zip(parts(corrected), parts(expected), strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=1e-4)  # the floor under a spread has a unit


@pytest.mark.parametrize("channels", [1, 2])
def test_units_are_those_of_each_channel(channels):
    states = torch.randn((50, channels, SITES), generator=generator(), dtype=torch.float64)
    states = states * torch.tensor([[3.0], [0.2]])[:channels] + torch.tensor([[1.0], [-5.0]])[:channels]
    found = Normalization.of(states)
    assert found.mean.shape == found.std.shape == (channels, 1)
    np.testing.assert_allclose(found.mean[:, 0], states.numpy().mean((0, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.std[:, 0], states.numpy().std((0, 2), ddof=1), rtol=1e-10)


# ---- options that they share


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("inflation", [0.7, 1.3])
@pytest.mark.parametrize("name", ["original", "gated", "recurrent"])
def test_inflation_multiplies_the_perturbations_and_leaves_the_mean(name, inflation, batch):
    plain, inflated = (shaken(small_analysis(name, 4, inflation=factor)) for factor in (1.0, inflation))
    x = given(plain, batch)
    expected, corrected = plain(x), inflated(x)
    mean = expected.base.mean(-3, keepdim=True)
    torch.testing.assert_close(corrected.base.mean(-3, keepdim=True), mean, **EXACT)
    torch.testing.assert_close(corrected.base - mean, inflation * (expected.base - mean), **EXACT)
    assert torch.equal(corrected.memory, expected.memory)


@with_every_case
def test_dropout_needs_a_generator(name, members, variant):
    analysis = shaken(small_analysis(name, members, dropout=0.5, operators=OPERATORS, **variant))
    x = given(analysis, operators=OPERATORS)
    assert torch.equal(analysis(x).base, analysis(x).base)
    assert torch.equal(analysis(x, generator(1)).base, analysis(x, generator(1)).base)
    assert not torch.equal(analysis(x, generator(1)).base, analysis(x).base)


@pytest.mark.parametrize("name", BOUNDED)
def test_the_memory_stays_bounded(name):
    analysis = shaken(small_analysis(name, 1 if name == "extended" else 4), size=3.0)
    x = given(analysis)
    x = x._replace(memory=torch.zeros_like(x.memory))
    for _ in range(50):
        x = x._replace(memory=analysis(x).memory)
        assert x.memory.abs().max() <= 1
    assert x.memory.abs().max() > 0.5


def test_remember_keeps_or_writes():
    memory, write, far = torch.tensor([0.3, -0.9]), torch.tensor([0.5, -1.0]), torch.full((2,), 40.0)
    torch.testing.assert_close(remember(memory, far, write), memory)
    torch.testing.assert_close(remember(memory, -far, write), write.tanh())
    torch.testing.assert_close(remember(memory, 0 * far, write), (memory + write.tanh()) / 2)


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


PAIRS = [(1, 1.1), (1, 1.0), (4, 1.1)]
NEEDS_TWO = "it needs ensemble covariances; take m ≥ 2, or analysis = 'recurrent'"
CARRIES_ONE = "it carries a covariance in place of members; take m = 1"


@pytest.mark.parametrize("name", ANALYSES)
def test_ensemble_sizes_that_do_not_work_are_refused(name):
    kind = ANALYSES[name]
    if name != "recurrent":
        members, allowed = (2, CARRIES_ONE) if name == "extended" else (1, NEEDS_TWO)
        with pytest.raises(ValueError, match=rf"^m = {members} does not work with this analysis; {allowed}\.$"):
            small_analysis(name, members)
    # A covariance has an inflation, a single member has none.
    expected = [] if name == "extended" else ["inflation = 1.1 does nothing to m = 1; set it to 1."]
    model = Lorenz96(sites=SITES)
    others = {"forecast_model": model, "sees_gradient": False, "sees_window": False}
    options = {case: SimpleNamespace(m=case[0], inflation=case[1], **others) for case in PAIRS}
    found = {case: list(kind.problems(chosen)) for case, chosen in options.items()}
    assert found == {(1, 1.1): expected, (1, 1.0): [], (4, 1.1): []}


# ---- a reader's own


@pytest.mark.usefixtures("readers_cell")
@pytest.mark.parametrize("lag", [0, 1])
def test_three_methods_make_an_analysis(lag):
    """Half way to what is seen, whatever else there is; and its cell is run again."""
    for share in (0.9, 0.5):

        @register_analysis("halfway")
        class Halfway(Analysis):
            def inputs(self):
                return 1

            def outputs(self):
                return 1

            def forward(self, given, generator=None, share=share):
                return Corrected(
                    given.base + share * given.error * self.innovation(given, given.predicted), given.memory
                )

    assert ANALYSES.find("halfway") is Halfway
    analysis = small_analysis("halfway", 2)
    x = given(analysis)
    moved = x.base + 0.5 * (x.observation - x.base) * x.mask
    torch.testing.assert_close(analysis(x).base, moved)
    model = small_filter("halfway", 3, lag, "partial_obs", noise=0.1)
    truth = [model.climatology[0]]
    for _ in range(60):
        truth.append(model.flow(truth[-1]))
    truth = torch.stack(truth[1:])
    observations = model.observation_model.observe(truth, torch.zeros_like(truth))
    ensemble = assimilate(model, observations, generator())
    assert ensemble.shape == (60, 3, 1, SITES)
    if not lag:
        error = (ensemble.mean(1) - truth).square().mean((1, 2)).sqrt()
        assert error[:3].min() > 1
        assert error[-5:].max() < 0.1


@pytest.mark.usefixtures("readers_cell")
@pytest.mark.parametrize("lag", [0, 2])
def test_an_analysis_that_carries_no_covariance_may_forecast_in_its_own_way(lag):
    """Once a cycle, and its bounds are those of the filter."""
    asked = []

    @register_analysis("drifting")
    class Drifting(RecurrentAnalysis):
        def forecast(self, base, covariance, flow):
            asked.append(covariance)
            return flow(base) + 1e6, covariance

    model = small_filter("drifting", 1, lag)
    carry = model.cold_start(generator=generator())
    for k in range(3):
        carry, _ = model.cycle(carry, torch.zeros(1, SITES), k)
    assert asked == [None] * 3
    largest = model.highest.expand_as(carry.base[0])
    torch.testing.assert_close(carry.base[0], largest)


def test_an_analysis_of_a_few_members_says_how_many():
    class Few(ANALYSES["recurrent"]):
        minimum_members, maximum_members = 2, 5

    assert Few.allowed_members() == "take m from 2 to 5"
