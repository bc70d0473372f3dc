"""One cycle is what its description says, at every lag; and its gradients are those of the whole."""

import inspect
import itertools
import math

import pytest
import torch
from small import (
    CASES,
    PARTIAL,
    SITES,
    STEP_SIZE,
    climatology,
    generator,
    normalization,
    record,
    shaken,
    small_analysis,
    small_filter,
)

from assim_lib.analyses import (
    Analysis,
    AnalysisInput,
    Corrected,
    Normalization,
    ensemble_kalman,
    extended_kalman,
    register_analysis,
)
from assim_lib.filter import AmortizedFilter, Carry
from assim_lib.observations import ObservationModel, observation_model
from assim_lib.systems import Lorenz96, VissioLucarini20
from assim_lib.tracking import assimilate

BATCHES = [(), (64,)]
EXACT = {"rtol": 1e-9, "atol": 1e-9}
EVERYWHERE = torch.ones(1, 1, SITES, dtype=torch.bool)


def observed(model, batch=(), seed=3, number=0):
    """Something to see in a cycle, and its number: a noisy state of the climatology, NaN where nothing is seen."""
    source = generator(seed)
    states = climatology()[torch.randint(64, batch, generator=source)]
    noisy = states + torch.randn(states.shape, generator=source, dtype=torch.float64)
    return torch.where(model.observation_model.mask(number), noisy, math.nan), number


def filter_of(instruments: ObservationModel, name="recurrent", members=4, lag=0, **options) -> AmortizedFilter:
    """A filter of such observations, of two channels where the instruments say so."""
    channels = instruments.schedule.shape[1]
    dynamics = Lorenz96(sites=SITES) if channels == 1 else VissioLucarini20(sites=SITES)
    states = climatology() if channels == 1 else dynamics.on_attractor(64, generator(7), 4.0)
    units = normalization(channels=channels)
    analysis = small_analysis(name, members, channels=channels, lag=lag, normalization=units, **options)
    return AmortizedFilter(dynamics, instruments, analysis, STEP_SIZE, states)


def given_to(model, *cycle, **options) -> AnalysisInput:
    """What the analysis of a cycle is given."""
    asked = []
    handle = model.analysis.register_forward_pre_hook(lambda _, arguments: asked.append(arguments[0]))
    model.cycle(*cycle, **options)
    handle.remove()
    return asked[0]


def assert_same(one: Carry, other: Carry, **tolerance) -> None:
    assert one.tensors().keys() == other.tensors().keys()
    for a, b in zip(one.tensors().values(), other.tensors().values(), strict=True):
        torch.testing.assert_close(a, b, **(tolerance or {"rtol": 0, "atol": 0}))


@pytest.fixture(params=[0, 2])
def lag(request):
    return request.param


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-m{case[1]}")
def case(request):
    return request.param


@pytest.fixture
def model(case, lag):
    return shaken(small_filter(*case, lag, PARTIAL), size=0.1)


# ---- cold start


@pytest.mark.parametrize("batch", BATCHES)
def test_a_cold_start_is_drawn_from_the_climatology_by_its_generator_alone(model, batch):
    # Neither truth nor observations can enter if it is not told more.
    parameters = inspect.signature(AmortizedFilter.cold_start).parameters
    assert list(parameters) == ["self", "batch", "generator", "near", "number"]
    assert parameters["near"].default is None
    carry, again, other = (model.cold_start(*batch, generator=generator(seed)) for seed in (1, 1, 2))
    assert_same(carry, again)
    assert not torch.equal(carry.base, other.base)
    nothing = torch.full((*batch, 1, SITES), math.nan)
    assert_same(model.cold_start(*batch, generator=generator(1), near=nothing), carry)
    assert carry.base.shape == carry.forecast.shape == (*batch, model.analysis.members, 1, SITES)
    assert (carry.memory == 0).all()
    drawn = {tuple(state) for state in carry.base.reshape(-1, SITES).tolist()}
    assert drawn <= {tuple(state) for state in climatology().flatten(1).tolist()}
    assert batch == () or len(drawn) > 30
    torch.testing.assert_close(carry.forecast, model.dynamics.flow(carry.base, model.lag * 2), **EXACT)


@pytest.mark.parametrize("batch", BATCHES)
def test_a_cold_start_near_numbers_has_the_error_of_each_entry_there(lag, batch):
    sites, deviation = 200, torch.tensor([0.3, 7.0, 0.6, 7.0]).repeat(50)
    analysis = small_analysis("recurrent", 8, lag=lag, sites=sites)
    instruments = observation_model("full_obs", 1, sites)
    instruments = ObservationModel(instruments.schedule, error=deviation)
    model = AmortizedFilter(Lorenz96(sites=sites), instruments, analysis, STEP_SIZE, climatology(sites))
    near = torch.full((*batch, 1, sites), math.nan, dtype=torch.float64)
    near[..., ::2] = torch.linspace(-20, 20, sites // 2, dtype=torch.float64)
    carry, plain = (model.cold_start(*batch, generator=generator(1), near=n) for n in (near, None))
    assert carry.base.shape == (*batch, 8, 1, sites)
    # The same climatological members as ever where nothing is said.
    assert torch.equal(carry.base[..., 1::2], plain.base[..., 1::2])
    error = ((carry.base - near.unsqueeze(-3)) / deviation)[..., ::2]
    for part in (error[..., ::2], error[..., 1::2]):
        assert abs(float(part.mean())) < 4 / part.numel() ** 0.5
        assert float(part.std()) == pytest.approx(1, rel=4 / (2 * part.numel()) ** 0.5)
    members = error.movedim(-3, 0).flatten(1)
    assert (torch.corrcoef(members) - torch.eye(8)).abs().max() < 5 / members.shape[1] ** 0.5
    torch.testing.assert_close(carry.forecast, model.flow(carry.base, lag), **EXACT)
    assert (carry.memory == 0).all()


# ---- one cycle


@pytest.mark.parametrize("batch", BATCHES)
def test_a_cycle_by_hand(model, lag, batch):
    def flow(states, cycles=1):
        for _ in range(cycles):
            states = model.dynamics.flow(states, 2).clamp(1.0, 4.0)
        return states

    carry = model.cold_start(*batch, generator=generator())
    model.lowest.fill_(1.0)
    model.highest.fill_(4.0)  # much is out of bounds
    observation, _ = observed(model, batch, number=2)
    after, analysis = model.cycle(carry, observation, 6)
    mask = model.observation_model.mask(2).double()
    given = AnalysisInput(
        base=carry.base,
        forecast=carry.forecast,
        predicted=carry.forecast,
        observation=observation.nan_to_num(0.0),
        mask=mask.expand(observation.shape),
        error=torch.ones(1, SITES, dtype=torch.float64),
        error_variance=torch.ones(1, SITES, dtype=torch.float64),
        phase=torch.full(batch, 2),
        tendency=model.dynamics.tendency(carry.base),
        memory=carry.memory,
        covariance=carry.covariance,
        predict=lambda states: flow(states, lag),
    )
    corrected, memory, covariance = model.analysis(given)
    assert (corrected > 4).any()
    corrected = corrected.clamp(1.0, 4.0)
    base, covariance = model.analysis.forecast(corrected, covariance, flow)
    path = [corrected, base]
    for _ in range(lag):
        path.append(flow(path[-1]))
    torch.testing.assert_close(analysis, path[-2], **EXACT)
    expected = Carry(path[1], path[-1], memory, covariance)
    assert_same(after, expected, **EXACT)
    # The next cycle's forecast is again the flow of its base over the lag.
    torch.testing.assert_close(after.forecast, flow(after.base, lag), **EXACT)
    assert analysis.shape == carry.base.shape


def test_each_channel_is_kept_within_bounds_of_its_own(lag):
    dynamics = VissioLucarini20(sites=SITES)
    climate = dynamics.on_attractor(64, generator(), 4.0) * torch.tensor([[1.0], [0.01]])
    own = Normalization.of(climate)
    analysis = shaken(small_analysis("recurrent", 4, channels=2, lag=lag, normalization=own), size=10.0)
    seen = observation_model("full_obs", 2, SITES)
    model = AmortizedFilter(dynamics, seen, analysis, STEP_SIZE, climate, clamp=3.0)
    assert torch.equal(model.lowest, own.mean - 3 * own.std)
    assert torch.equal(model.highest, own.mean + 3 * own.std)
    carry = model.cold_start(64, generator=generator())
    lost = carry._replace(base=carry.base + torch.tensor([[1e3], [-1e3]]))
    _, ensemble = model.cycle(lost, torch.zeros(64, 2, SITES, dtype=torch.float64), 0)
    assert ensemble.isfinite().all()
    if lag == 0:
        assert (ensemble == ensemble.clamp(model.lowest, model.highest)).all()
        assert (ensemble == model.highest).any()
        assert (ensemble == model.lowest).any()


def test_a_batch_is_its_trajectories_one_by_one(model):
    carry = model.cold_start(64, generator=generator())
    number = torch.randint(100, (64,), generator=generator(4))
    observation, _ = observed(model, (64,), number=number)
    together = model.cycle(carry, observation, number)
    alone = model.cycle(carry.each(lambda part: part[5]), observation[5], int(number[5]))
    torch.testing.assert_close(alone[1], together[1][5], **EXACT)
    assert_same(alone[0], together[0].each(lambda part: part[5]), **EXACT)


def test_what_is_carried_is_known_by_name():
    model = shaken(small_filter("original"))
    carry, _ = model.cycle(model.cold_start(generator=generator()), *observed(model))
    assert list(carry.tensors()) == ["base", "forecast", "memory"]
    assert all(part.requires_grad for part in carry.tensors().values())
    cut = carry.each(torch.detach)
    assert not any(part.requires_grad for part in cut.tensors().values())
    assert_same(cut, carry)
    extended = small_filter("extended", 1).cold_start(generator=generator())
    assert list(extended.tensors()) == ["base", "forecast", "memory", "covariance"]


# ---- what is seen


@pytest.mark.parametrize("number", [0, 1, 4, 7, 2**24 + 1, 10**12 + 3])
def test_a_cycles_number_says_what_is_seen(number):
    """Whole numbers do not drift; sums of times in single precision would have, long before 2²⁴."""
    model = small_filter("recurrent", obs_conf=PARTIAL)
    carry = model.cold_start(3, generator=generator())
    given = given_to(model, carry, torch.zeros(3, 1, SITES, dtype=torch.float64), number)
    assert (given.phase == number % 4).all()
    assert (given.mask == (torch.arange(SITES) % 4 == number % 4)).all()
    assert torch.equal(given.predicted, carry.forecast)  # also where nothing is seen


@pytest.mark.parametrize("lag", [0, 2])
def test_the_operator_is_applied_to_the_forecast(lag):
    model = filter_of(ObservationModel(EVERYWHERE, torch.square), lag=lag)
    carry = model.cold_start(generator=generator())
    given = given_to(model, carry, climatology()[0], 0)
    assert torch.equal(given.predicted, carry.forecast.square())
    assert torch.equal(given.forecast, carry.forecast)
    assert torch.equal(given.predict(carry.base), model.flow(carry.base, lag).square())


@pytest.mark.parametrize("lag_warmup", [0, 2])
def test_an_analysis_that_asks_is_given_the_observations_since_the_base(lag_warmup):
    model = shaken(small_filter("recurrent", 2, 2, PARTIAL, sees_gradient=True, sees_window=True), 0.05)
    model.lag_warmup = lag_warmup
    observations, carry = record(model, (3,), cycles=7), model.cold_start(3, generator=generator())
    for age in range(7):
        lag = model.lag_at(age)
        given = given_to(model, carry, observations[:, age], age, age=age)
        assert given.recent.shape == (3, lag, 2, 1, SITES)
        since = min(lag, age)  # there was nothing before the cold start
        assert (given.recent[:, : lag - since] == 0).all()
        received = observations[:, age - since : age]
        torch.testing.assert_close(given.recent[:, lag - since :, 0], received.nan_to_num(0.0), **EXACT)
        assert torch.equal(given.recent[:, lag - since :, 1], received.isfinite().double())
        predicted = given.predict_each(given.base)
        assert len(predicted) == lag + 1
        for cycles, states in enumerate(predicted):
            torch.testing.assert_close(states, model.flow(given.base, cycles), **EXACT)
        carry, _ = model.cycle(carry, observations[:, age], age, age=age)


@pytest.mark.parametrize("missing", [math.nan, math.inf, -math.inf])
def test_what_never_came_is_as_if_it_had_not_been_expected(case, missing):
    """Not as if a zero had been observed: neither in the correction nor in what is remembered."""
    model, gaps = shaken(small_filter(*case, 1), size=0.1), torch.arange(SITES) % 5 == 2
    fewer = model.with_observations(ObservationModel(EVERYWHERE & ~gaps), STEP_SIZE)
    observation, number = observed(model, (3,))
    carry = model.cold_start(3, generator=generator())
    with_gaps = torch.where(gaps, missing, observation)
    given = given_to(model, carry, with_gaps, number)
    assert torch.equal(given.mask, (~gaps).double().expand(3, 1, SITES))
    assert torch.equal(given.observation, observation.masked_fill(gaps, 0.0))
    after, analysis = model.cycle(carry, with_gaps, number)
    expected, same = fewer.cycle(carry, observation, number)  # what nobody expects is not used
    assert torch.equal(analysis, same)
    assert_same(after, expected)
    for other in (observation, observation.masked_fill(gaps, 0.0)):
        assert not torch.allclose(model.cycle(carry, other, number)[1], analysis, atol=1e-3)
    nothing, analysis = model.cycle(carry, torch.full_like(observation, missing), number)
    assert all(part.isfinite().all() for part in (analysis, *nothing.tensors().values()))


# ---- the error of what is seen

ERRORS = {
    "one a channel": torch.tensor([[0.5], [2.0]]),
    "one a site": torch.linspace(0.1, 3.0, SITES),
    "one an entry": 0.2 + torch.arange(2 * SITES).view(2, SITES) / 8.0,
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_an_error_of_any_shape_enters_the_gain(error):
    """Without localization a filter with a covariance is the dense update of the textbook, R = diag(σ²)."""
    schedule = torch.rand((1, 2, SITES), generator=generator(2)) < 0.7
    model = filter_of(ObservationModel(schedule, error=error), "extended", 1, inflation=1.0, taper_length=1e9)
    deviation, std, received = error.double().expand(2, SITES), 3.6, schedule.flatten()
    root = torch.randn(2 * SITES, 40, generator=generator(1), dtype=torch.float64)
    carry = model.cold_start(generator=generator())._replace(covariance=0.5 * root @ root.mT / 40)
    observation = carry.forecast[0] + 0.5 * deviation * torch.sign(climatology()[:2, 0])
    given = given_to(model, carry, observation, 0)
    assert torch.equal(given.error, deviation)
    assert torch.equal(given.error_variance, deviation.square())
    prior = std**2 * carry.covariance
    seen, error = prior[received][:, received], torch.diag(deviation.flatten()[received].square())
    gain = prior[:, received] @ torch.linalg.inv(seen + error)
    increment = gain @ (observation - carry.forecast[0]).flatten()[received]
    corrected = model.analysis(given)
    torch.testing.assert_close((corrected.base - carry.base).flatten(), increment, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(corrected.covariance * std**2, prior - gain @ prior[received], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("channels", [1, 2])
def test_equal_errors_are_bit_for_bit_one_error(case, channels):
    schedule = torch.rand((3, channels, SITES), generator=generator(2)) < 0.6
    ensembles = []
    for error in (0.7, torch.full((channels, SITES), 0.7, dtype=torch.float64)):
        model = shaken(filter_of(ObservationModel(schedule, error=error), *case, 1), size=0.1).float()
        states = model.climatology[:7].expand(7, channels, SITES)
        observations = model.observation_model.observe(states, torch.ones_like(states))
        ensembles.append(assimilate(model, observations, generator()))
    assert torch.equal(*ensembles)


# ---- unknown instruments


@pytest.mark.parametrize("name", ["original", "recurrent"])
def test_what_an_unknown_instrument_shows_is_not_predicted(name):
    model = shaken(small_filter(name, obs_conf="unstructured_partial_obs", network="ff"))
    number = torch.arange(16)
    carry = model.cold_start(16, generator=generator())
    observation, _ = observed(model, (16,), number=number)
    given = given_to(model, carry, observation, number)
    for k in range(16):
        known = model.observation_model.known(k)
        assert known.any() == (k % 2 == 0)
        assert torch.equal(given.predicted[k], carry.forecast[k] * known)
        assert torch.equal(given.mask[k], model.observation_model.mask(k).double())
    # But it is used.
    analysis, moved = (model.cycle(carry, y, number)[1] for y in (observation, observation + 5))
    assert ((moved - analysis).abs().amax((1, 2, 3)) > 1e-3).all()
    # Its weights are not looked at.
    for matrix in model.observation_model.unknown.values():
        matrix.fill_(math.nan)
    assert torch.equal(model.cycle(carry, observation, number)[1], analysis)


# ---- the lag of a new filter


def test_the_lag_grows_while_the_base_stays(case):
    model = small_filter(*case, 3, PARTIAL)
    model.lag_warmup = 2
    assert model.warmup == 6
    assert [model.lag_at(age) for age in (*range(8), None)] == [0, 0, 1, 1, 2, 2, 3, 3, 3]
    carry = model.cold_start(5, generator=generator())
    assert torch.equal(carry.forecast, carry.base)
    observations = record(model, (5,), cycles=9)
    first, analyses = carry, []
    for age in range(9):
        lag = model.lag_at(age)
        given = given_to(model, carry, observations[:, age], age, age=age)
        torch.testing.assert_close(given.predict(given.base), model.flow(given.base, lag), **EXACT)
        corrected, _, covariance = model.analysis(given)
        corrected = corrected.clamp(model.lowest, model.highest)
        carry, analysis = model.cycle(carry, observations[:, age], age, age=age)
        analyses.append(analysis)
        if age in (1, 3, 5):  # from now on the observation is one cycle further away
            torch.testing.assert_close(carry.base, corrected, **EXACT)
            torch.testing.assert_close(analysis, model.flow(corrected, lag), **EXACT)
            assert covariance is None or torch.equal(carry.covariance, covariance)  # neither goes on
        later = model.lag_at(age + 1)
        torch.testing.assert_close(carry.forecast, model.flow(carry.base, later), **EXACT)
        if age == 5:
            warm = model.warmed_up(first, observations, *(torch.arange(9).expand(5, 9),) * 2)
            assert_same(warm, carry)
    torch.testing.assert_close(assimilate(model, observations, generator()), torch.stack(analyses, -4), **EXACT)


# ---- members from a carried covariance


@pytest.mark.parametrize(("name", "members"), [("extended", 1), ("covariant", 4)])
def test_drawn_members_change_neither_the_mean_nor_what_is_carried(name, members, lag):
    model = shaken(small_filter(name, members, lag, PARTIAL), size=0.1)
    plain, drawn = (assimilate(model, record(model, (5,)), generator(), draws=draws) for draws in (0, 30))
    assert plain.shape[-3] == members
    if members > 1:  # a filter that has members returns those
        assert torch.equal(plain, drawn)
    else:
        assert drawn.shape[-3] == 30
        torch.testing.assert_close(drawn.mean(-3, keepdim=True), plain, **EXACT)
        assert (drawn.std(-3) > 0).double().mean() > 0.9  # but where all are at a bound


@pytest.mark.usefixtures("readers_cell")
def test_any_analysis_may_carry_a_covariance(lag):
    """The cycle does not ask which analysis runs: a reader's Kalman filter with one variance for all is carried on."""
    growth = 1.5

    @register_analysis("scalar")
    class Scalar(Analysis):
        def inputs(self):
            return 1

        def outputs(self):
            return 1

        def initial_covariance(self, *batch, climatology):
            return torch.eye(climatology[0].numel(), dtype=climatology.dtype).expand(*batch, -1, -1)

        def forward(self, given, generator=None):
            variance = given.covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
            share = variance / (variance + 1)
            missed = (given.observation - given.predicted.mean(-3)) * given.mask
            base = given.base + (share * missed).unsqueeze(-3)
            return Corrected(base, given.memory, (1 - share) * given.covariance)

        def forecast(self, base, covariance, flow):
            return flow(base), growth * covariance

    model = filter_of(ObservationModel(EVERYWHERE), "scalar", 2, lag)
    observations = record(model, (3,))
    carry, variance = model.cold_start(3, generator=generator()), 1.0
    for k in range(7):
        carry, _ = model.cycle(carry, observations[:, k], k)
        variance = growth * variance / (variance + 1)
        torch.testing.assert_close(carry.covariance, variance * torch.eye(SITES).double().expand(3, -1, -1))
    assert assimilate(model, observations, generator()).shape == (3, 7, 2, 1, SITES)


# ---- the same filter, otherwise


def test_a_filter_with_more_members_has_the_same_weights(lag):
    model = shaken(small_filter("original", 4, lag, PARTIAL))
    more = model.with_members(9)
    assert (model.analysis.members, more.analysis.members) == (4, 9)
    assert all(a is b for a, b in zip(model.parameters(), more.parameters(), strict=True))
    assert assimilate(more, record(model), generator()).shape[-3] == 9
    assert assimilate(model, record(model), generator()).shape[-3] == 4


def test_a_filter_of_other_observations_has_the_same_weights():
    model = shaken(small_filter("hybrid", 4, 1, PARTIAL))
    model.lag_warmup, model.clamp = 3, 5.0
    instruments = observation_model("partial_obs", 1, SITES, 0.5)
    other = model.with_observations(instruments, 0.2)
    assert (other.steps, other.lag, other.lag_warmup, other.clamp) == (4, 1, 3, 5.0)
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))
    built = shaken(small_filter("hybrid", 4, 1, "partial_obs", noise=0.5))
    built = AmortizedFilter(built.dynamics, instruments, built.analysis, 0.2, climatology(), 3, 5.0)
    observations = record(other)
    assert torch.equal(*(assimilate(one, observations, generator()) for one in (other, built)))
    with pytest.raises(ValueError, match=r"^step_size = 0\.07 must be a positive multiple"):
        model.with_observations(instruments, 0.07)


# ---- gradients


class Held:
    """A function that no gradient goes through: once told to, it gives the answers that it gave before, in turn."""

    def __init__(self, function):
        self.function, self.answers, self.again = function, [], None

    def __call__(self, *arguments):
        if self.again:
            return next(self.again)
        self.answers.append(self.function(*arguments))
        return self.answers[-1]

    def hold(self):
        self.again = itertools.cycle(self.answers)


class CycleOf(torch.nn.Module):
    """A filter whose call is its cycle, as torch.func wants it."""

    def __init__(self, model):
        super().__init__()
        self.cycle_model = model

    def forward(self, *arguments):
        return self.cycle_model.cycle(*arguments)


def test_gradients_through_cycles_are_those_of_finite_differences(model, monkeypatch):
    """Two whole cycles; the derivative along random directions of the weights and of the first ensemble."""
    start = model.cold_start(generator=generator())
    seen = [observed(model, seed=3 + number, number=number) for number in (0, 1)]
    parameters = dict(model.named_parameters())
    variables = {**parameters, "base": start.base, "forecast": start.forecast}
    # What is a constant to training stays here what it is at the start.
    owners = {"central_differences": (ensemble_kalman, extended_kalman)}
    owners |= {name: (model.analysis,) for name in ("completed", "_surprise_factor") if hasattr(model.analysis, name)}
    constants = []
    for name, modules in owners.items():
        constants.append(held := Held(getattr(modules[0], name)))
        for module in modules:
            monkeypatch.setattr(module, name, held)

    def value(variables):
        carry = start._replace(base=variables["base"], forecast=variables["forecast"])
        total = torch.zeros((), dtype=torch.float64)
        weights = {f"cycle_model.{name}": variables[name] for name in parameters}
        for arguments in seen:
            carry, analysis = torch.func.functional_call(CycleOf(model), weights, (carry, *arguments))
            total = total + carry.forecast.mean(-3).square().mean() + analysis.square().mean()
        return total

    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in variables.items()}
    found = torch.autograd.grad(value(leaves), leaves.values(), allow_unused=True, materialize_grads=True)
    gradients = dict(zip(leaves, found, strict=True))
    for held in constants:
        held.hold()
    eps = 1e-5
    for seed, moved in ((0, list(parameters)), (1, ["base"]), (2, ["forecast"])):
        source = generator(seed)
        direction = {name: torch.randn(leaves[name].shape, generator=source, dtype=torch.float64) for name in moved}
        with torch.no_grad():
            sides = [
                value({**leaves, **{name: leaves[name] + sign * eps * d for name, d in direction.items()}})
                for sign in (1, -1)
            ]
        expected = float(sides[0] - sides[1]) / (2 * eps)
        derivative = sum(float((gradients[name] * d).sum()) for name, d in direction.items())
        assert derivative == pytest.approx(expected, rel=1e-5, abs=1e-8)
    assert all(gradients[name].abs().max() > 0 for name in gradients if name != "forecast")
