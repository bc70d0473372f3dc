"""One cycle is what its description says, at every lag; and its gradients are those of the whole."""

import inspect
import itertools
import math

import pytest
import torch
from small import CASES, SITES, STEP_SIZE, climatology, generator, scales, shaken, small_analysis, small_filter

from assim_lib.analyses import AnalysisInput, Scales
from assim_lib.filters import AmortizedFilter, Carry, assimilate, mean_gain
from assim_lib.observations import ObservationModel, observation_model
from assim_lib.systems import Lorenz96, VissioLucarini20

BATCHES = [(), (64,)]
EXACT = {"rtol": 1e-9, "atol": 1e-9}
PARTIAL = "every_4th_dim_partial_obs"


def observed(model, batch=(), seed=3, number=0):
    """Something to see in a cycle, and its number: a noisy state of the climatology, where its mask is."""
    source = generator(seed)
    states = climatology()[torch.randint(64, batch, generator=source)]
    noisy = states + torch.randn(states.shape, generator=source, dtype=torch.float64)
    return noisy * model.observation_model.mask(number), number


@pytest.fixture(params=[0, 1, 3])
def lag(request):
    return request.param


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-m{case[1]}")
def model(request, lag):
    name, members = request.param
    return shaken(small_filter(name, members, lag, PARTIAL), size=0.1)


# ---- cold start


@pytest.mark.parametrize("batch", BATCHES)
def test_a_cold_start_is_drawn_from_the_climatology(model, batch):
    carry = model.cold_start(*batch, generator=generator())
    assert carry.base.shape == carry.forecast.shape == (*batch, model.analysis.members, 1, SITES)
    # What the network remembers is empty; a carried covariance is that of the climatology.
    assert (carry.memory[..., : model.analysis.memory] == 0).all()
    known = {tuple(state) for state in climatology().flatten(1).tolist()}
    drawn = [tuple(state) for state in carry.base.reshape(-1, SITES).tolist()]
    assert set(drawn) <= known
    if batch:
        assert len(set(drawn)) > 30
    torch.testing.assert_close(carry.forecast, model.dynamics.flow(carry.base, model.lag * 2), **EXACT)


def test_a_cold_start_knows_its_generator_alone_if_not_told_more(model):
    # Neither truth nor observations can enter.
    parameters = inspect.signature(AmortizedFilter.cold_start).parameters
    assert list(parameters) == ["self", "batch", "generator", "near"]
    assert parameters["near"].default is None
    first, again, other = (model.cold_start(8, generator=generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.base, other.base)


@pytest.mark.parametrize("batch", BATCHES)
def test_a_cold_start_near_numbers_has_an_error_of_its_own_there(lag, batch):
    noise, sites = 0.3, 200
    analysis = small_analysis("recurrent", 8, lagged=lag > 0, sites=sites, scales=scales(noise=noise))
    seen = observation_model("full_obs", 1, sites)
    model = AmortizedFilter(Lorenz96(sites=sites), seen, analysis, STEP_SIZE, lag, climatology(sites))
    near = torch.full((*batch, 1, sites), math.nan, dtype=torch.float64)
    near[..., ::2] = torch.linspace(-20, 20, sites // 2, dtype=torch.float64)
    carry, plain = (model.cold_start(*batch, generator=generator(1), near=n) for n in (near, None))
    assert carry.base.shape == (*batch, 8, 1, sites)
    # The same climatological members as ever where nothing is said.
    assert torch.equal(carry.base[..., 1::2], plain.base[..., 1::2])
    error = (carry.base - near.unsqueeze(-3))[..., ::2]
    numbers = error.numel()
    assert abs(float(error.mean())) < 4 * noise / numbers**0.5
    assert float(error.std()) == pytest.approx(noise, rel=4 / (2 * numbers) ** 0.5)
    members = error.movedim(-3, 0).flatten(1)
    assert (torch.corrcoef(members) - torch.eye(8)).abs().max() < 5 / members.shape[1] ** 0.5
    torch.testing.assert_close(carry.forecast, model.dynamics.flow(carry.base, lag * 2), **EXACT)
    assert (carry.memory == 0).all()


def test_a_cold_start_near_nothing_is_the_plain_one(model):
    nothing = torch.full((5, 1, SITES), math.nan)
    near, plain = (model.cold_start(5, generator=generator(), near=n) for n in (nothing, None))
    assert all(torch.equal(a, b) for a, b in zip(near, plain, strict=True))


# ---- one cycle


@pytest.mark.parametrize("batch", BATCHES)
def test_a_cycle_by_hand(model, lag, batch):
    carry = model.cold_start(*batch, generator=generator())
    carry.base[..., 0, 0, 5] = 40.0  # out of bounds
    observation, _ = observed(model, batch, number=2)
    after, analysis = model.cycle(carry, observation, 6)

    given = AnalysisInput(
        base=carry.base,
        forecast=carry.forecast,
        predicted=carry.forecast,
        observation=observation,
        mask=model.observation_model.mask(2).expand(observation.shape).double(),
        phase=torch.full(batch, 2),
        tendency=model.dynamics.tendency(carry.base),
        memory=carry.memory,
        sensitivity=model.sensitivity(carry.base, carry.memory, lag)[0],
    )
    corrected, memory = model.analysis(given)
    assert (corrected > model.highest).any()
    corrected = corrected.clamp(model.lowest, model.highest)
    base = model.dynamics.flow(corrected, 2)
    if model.analysis.carries_covariance:
        derivative, shift = model.sensitivity(corrected, memory, 1, observed=False)
        memory = model.analysis.propagated(memory, derivative)
        base = (base + shift).clamp(model.lowest, model.highest)
    torch.testing.assert_close(after.base, base, **EXACT)
    torch.testing.assert_close(analysis, model.dynamics.flow(base, 2 * lag - 2) if lag else corrected, **EXACT)
    torch.testing.assert_close(after.forecast, model.dynamics.flow(base, 2 * lag), **EXACT)
    assert torch.equal(after.memory, memory)
    # The next cycle's forecast is again the flow of its base over the lag.
    torch.testing.assert_close(after.forecast, model.dynamics.flow(after.base, 2 * lag), **EXACT)
    assert analysis.shape == carry.base.shape


def test_the_sensitivity_of_a_narrow_ensemble_is_the_derivative(lag):
    model = small_filter("covariant", 4, lag, PARTIAL)
    mean = climatology()[0]
    base = mean + 1e-9 * torch.randn(4, 1, SITES, generator=generator(), dtype=torch.float64)
    memory = model.analysis.initial_memory(climatology=climatology())
    model.analysis.std = model.analysis.std * 1e-3  # differences are at least a thousandth of this
    derivative = torch.func.jacrev(lambda x: model.dynamics.flow(x, 2 * lag).flatten())(mean).flatten(1)
    found, _ = model.sensitivity(base, memory, lag)
    torch.testing.assert_close(found, derivative, rtol=1e-4, atol=1e-4)
    several, _ = model.sensitivity(base.expand(3, *base.shape), memory.expand(3, *memory.shape), lag)
    torch.testing.assert_close(several, found.expand(3, -1, -1), **EXACT)


@pytest.mark.parametrize("size", [0.01, 3.0])
def test_the_sensitivity_of_a_carried_covariance(lag, size):
    """Derivative, and half the trace of covariance times second derivative; the shift stays small where little is known."""
    model = small_filter("extended", 1, lag, PARTIAL)
    mean = climatology()[0]
    states = model.analysis.std * size * torch.randn(60, 1, SITES, generator=generator(), dtype=torch.float64)
    memory = model.analysis.initial_memory(climatology=states)
    derivative, shift = model.sensitivity(mean[None], memory, 1, observed=False)

    def flow(x):
        return model.dynamics.flow(x.view(1, SITES), 2).flatten()

    expected = torch.func.jacrev(flow)(mean.flatten())
    curvature = torch.func.hessian(flow)(mean.flatten())
    second = 0.5 * torch.einsum("jkl,kl->j", curvature, 2 * torch.cov(states.flatten(1).mT))
    if size < 1:
        torch.testing.assert_close(derivative, expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(shift.flatten(), second, rtol=0.02, atol=1e-3 * float(second.abs().max()))
    else:
        assert (shift.flatten() - second).norm() > 0.5 * second.norm()
        assert shift.abs().max() < 0.3 * model.analysis.std.max()
        assert ((derivative - expected).norm() / expected.norm()) < 0.5


def test_states_are_kept_within_bounds(lag):
    model = shaken(small_filter("recurrent", lag=lag), size=10.0)
    carry = model.cold_start(64, generator=generator())
    carry = carry._replace(base=carry.base + 1000)
    low, high = model.lowest, model.highest
    assert (low.item(), high.item()) == (2.3 - 4 * 3.6, 2.3 + 4 * 3.6)
    _, analysis = model.cycle(carry, *observed(model, (64,)))
    assert analysis.isfinite().all()
    if lag == 0:
        assert (analysis >= low).all()
        assert (analysis == high).any()


def test_a_batch_is_its_trajectories_one_by_one(model):
    carry = model.cold_start(64, generator=generator())
    number = torch.randint(100, (64,), generator=generator(4))
    observation, _ = observed(model, (64,), number=number)
    together = model.cycle(carry, observation, number)
    alone = model.cycle(Carry(*(part[5] for part in carry)), observation[5], int(number[5]))
    torch.testing.assert_close(alone[1], together[1][5], **EXACT)
    for one, all_ in zip(alone[0], together[0], strict=True):
        torch.testing.assert_close(one, all_[5], **EXACT)


def given_to(model, carry, observation, number) -> AnalysisInput:
    """What the analysis of a cycle is given."""
    seen = []
    handle = model.analysis.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model.cycle(carry, observation, number)
    handle.remove()
    return seen[0]


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
    seen = ObservationModel(torch.ones(1, 1, SITES, dtype=torch.bool), torch.square)
    analysis = small_analysis("recurrent", 4, lagged=lag > 0)
    model = AmortizedFilter(Lorenz96(sites=SITES), seen, analysis, STEP_SIZE, lag, climatology())
    carry = model.cold_start(generator=generator())
    given = given_to(model, carry, climatology()[0], 0)
    assert torch.equal(given.predicted, carry.forecast.square())
    assert torch.equal(given.forecast, carry.forecast)


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
    analysis = model.cycle(carry, observation, number)[1]
    moved = model.cycle(carry, observation + 5 * given.mask, number)[1]
    assert ((moved - analysis).abs().amax((1, 2, 3)) > 1e-3).all()


def test_the_weights_of_an_unknown_instrument_are_not_looked_at():
    model = shaken(small_filter("recurrent", obs_conf="unstructured_partial_obs", network="ff"))
    observation, _ = observed(model, number=1)
    carry = model.cold_start(generator=generator())
    before = model.cycle(carry, observation, 1)[1]
    for matrix in model.observation_model.unknown.values():
        matrix.fill_(math.nan)
    assert torch.equal(model.cycle(carry, observation, 1)[1], before)


# ---- a network for each operator


@pytest.mark.parametrize("batch", BATCHES)
def test_a_bank_uses_the_network_of_the_cycle(batch):
    """Each network of the bank shifts all sites by a number of its own."""
    model = small_filter("recurrent", obs_conf=PARTIAL, network="ff_per_operator")
    trunks = model.analysis.trunk.trunks
    assert len(trunks) == 4
    for operator, trunk in enumerate(trunks):
        trunk.head.bias.data.unflatten(0, (SITES, -1))[:, 0] = 0.1 * (operator + 1)  # outputs: increment, …
    carry = model.cold_start(*batch, generator=generator())
    first = torch.randint(100, batch, generator=generator(1))
    for k in range(5):
        _, analysis = model.cycle(carry, torch.zeros(*batch, 1, SITES, dtype=torch.float64), first + k)
        shift = 0.1 * ((first + k) % 4 + 1).double() * float(model.analysis.std)
        expected = carry.base + shift[..., None, None, None]
        torch.testing.assert_close(analysis, expected.clamp(model.lowest, model.highest), **EXACT)


# ---- members from a carried covariance


@pytest.mark.parametrize("batch", BATCHES)
def test_drawn_members_have_the_carried_covariance(batch):
    analysis = small_analysis("extended", 1, channels=2, lagged=True)
    states = analysis.mean + analysis.std * torch.randn(60, 2, SITES, generator=generator(), dtype=torch.float64)
    memory = analysis.initial_memory(*batch, climatology=states)
    base = states[0].expand(*batch, 1, 2, SITES)
    members = analysis.drawn(base, memory, 4000, generator(1))
    assert members.shape == (*batch, 4000, 2, SITES)
    torch.testing.assert_close(members.mean(-3, keepdim=True), base, **EXACT)
    one = members.reshape(-1, 4000, 2 * SITES)[0]
    expected = 2 * torch.cov(states.flatten(1).mT)
    # Each entry of a sample covariance is off by its standard error, a few times at most.
    error = (expected.diagonal()[:, None] * expected.diagonal() + expected**2).div(4000).sqrt()
    assert ((torch.cov(one.mT) - expected).abs() < 5 * error).all()


def test_drawn_members_change_neither_the_mean_nor_what_is_carried(lag):
    model = shaken(small_filter("extended", 1, lag, PARTIAL), size=0.1)
    observations = record(model, (5,))
    plain, drawn = (assimilate(model, observations, generator(), draws=draws) for draws in (0, 30))
    assert (plain.shape[-3], drawn.shape[-3]) == (1, 30)
    torch.testing.assert_close(drawn.mean(-3, keepdim=True), plain, **EXACT)
    assert (drawn.std(-3) > 0).all()


def test_a_filter_with_members_returns_those(lag):
    model = shaken(small_filter("covariant", 4, lag), size=0.1)
    observations = record(model)
    assert torch.equal(*(assimilate(model, observations, generator(), draws=draws) for draws in (0, 30)))


# ---- several channels


def test_each_channel_is_kept_within_bounds_of_its_own():
    dynamics = VissioLucarini20(sites=SITES)
    climate = dynamics.on_attractor(64, generator(), 4.0) * torch.tensor([[1.0], [0.01]])
    own = Scales.of(climate, 1.0)
    analysis = small_analysis("recurrent", 4, channels=2, scales=own)
    seen = observation_model("full_obs", 2, SITES)
    model = AmortizedFilter(dynamics, seen, analysis, STEP_SIZE, 0, climate, clamp=3.0)
    assert torch.equal(model.lowest, own.mean - 3 * own.std)
    assert torch.equal(model.highest, own.mean + 3 * own.std)
    carry = model.cold_start(generator=generator())
    lost = carry._replace(base=carry.base + torch.tensor([[1e3], [-1e3]]))
    _, analysis = model.cycle(lost, torch.zeros(2, SITES, dtype=torch.float64), 0)
    assert torch.equal(analysis[:, 0], model.highest[0].expand(4, SITES))
    assert torch.equal(analysis[:, 1], model.lowest[1].expand(4, SITES))


def test_detach_cuts_the_graph():
    model = shaken(small_filter("original"))
    carry, _ = model.cycle(model.cold_start(generator=generator()), *observed(model))
    assert all(part.requires_grad for part in carry)
    assert not any(part.requires_grad for part in carry.detach())
    assert all(torch.equal(a, b) for a, b in zip(carry, carry.detach(), strict=True))


# ---- gradients


def test_gradients_through_cycles_are_those_of_finite_differences(model):
    """Two whole cycles; the derivative along random directions of the weights and of the first ensemble."""
    start = model.cold_start(generator=generator())
    seen = [observed(model, seed=3 + number, number=number) for number in (0, 1)]
    parameters = dict(model.named_parameters())
    variables = {**parameters, "base": start.base, "forecast": start.forecast}
    # No gradient goes through the sensitivities: here they stay what they are at the start.
    sensitivity, asked = model.sensitivity, []
    model.sensitivity = lambda *given, **how: asked.append(sensitivity(*given, **how)) or asked[-1]
    after = model.cycle(start, *seen[0])[0]
    model.cycle(after.detach(), *seen[1])
    held = itertools.cycle(asked)
    model.sensitivity = lambda *given, **how: next(held)

    def value(variables):
        carry = Carry(variables["base"], variables["forecast"], start.memory)
        total = torch.zeros((), dtype=torch.float64)
        weights = {f"cycle_model.{name}": variables[name] for name in parameters}
        for arguments in seen:
            carry, analysis = torch.func.functional_call(CycleOf(model), weights, (carry, *arguments))
            total = total + carry.forecast.mean(-3).square().mean() + analysis.square().mean()
        return total

    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in variables.items()}
    found = torch.autograd.grad(value(leaves), leaves.values(), allow_unused=True, materialize_grads=True)
    gradients = dict(zip(leaves, found, strict=True))
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


class CycleOf(torch.nn.Module):
    """A filter whose call is its cycle, as torch.func wants it."""

    def __init__(self, model):
        super().__init__()
        self.cycle_model = model

    def forward(self, *arguments):
        return self.cycle_model.cycle(*arguments)


# ---- whole records


def record(model, batch=(), cycles=7):
    """Observations along a truth, NaN where nothing is seen."""
    truth = [climatology()[torch.randint(64, batch, generator=generator(9))]]
    for _ in range(cycles):
        truth.append(model.dynamics.flow(truth[-1], 2))
    truth = torch.stack(truth[1:], -3)
    mask = model.observation_model.mask(torch.arange(cycles)).expand(truth.shape)
    noise = torch.randn(truth.shape, generator=generator(10), dtype=torch.float64)
    return torch.where(mask, truth + noise, math.nan)


@pytest.mark.parametrize("batch", BATCHES)
def test_assimilation_is_a_loop_of_cycles(model, batch):
    observations = record(model, batch)
    ensembles = assimilate(model, observations, generator(5))
    assert ensembles.shape == (*batch, 7, model.analysis.members, 1, SITES)
    assert not ensembles.requires_grad
    carry, by_hand = model.cold_start(*batch, generator=generator(5)), []
    for k in range(7):
        carry, analysis = model.cycle(carry, observations[..., k, :, :].nan_to_num(0.0), k)
        by_hand.append(analysis)
    torch.testing.assert_close(ensembles, torch.stack(by_hand, -4), **EXACT)


def test_unseen_may_be_zero_or_nan(model):
    observations = record(model)
    ensembles = [assimilate(model, x, generator()) for x in (observations, observations.nan_to_num(0.0))]
    assert torch.equal(*ensembles)


def test_each_trajectory_may_stand_elsewhere_in_the_schedule():
    model = shaken(small_filter("hybrid", obs_conf=PARTIAL))
    observations = record(model, (64,), cycles=8)
    first = torch.arange(64) % 4
    # Trajectory i is given its own record, from cycle first[i] on.
    later = torch.stack([observations[i, f : f + 4] for i, f in enumerate(first.tolist())])
    ensembles = assimilate(model, later, generator(), first_cycle=first)
    carry = model.cold_start(64, generator=generator())
    carry = Carry(*(part[6] for part in carry))
    for k in range(4):
        carry, analysis = model.cycle(carry, later[6, k].nan_to_num(0.0), 2 + k)
        torch.testing.assert_close(ensembles[6, k], analysis, **EXACT)
    assert not torch.allclose(ensembles, assimilate(model, later, generator()))


def test_an_assimilation_may_start_near_numbers():
    model = shaken(small_filter("recurrent", obs_conf=PARTIAL))
    observations = record(model, (64,))
    near = observations[:, 0]  # NaN where nothing is seen
    ensembles = assimilate(model, observations, generator(5), near=near)
    carry = model.cold_start(64, generator=generator(5), near=near)
    _, analysis = model.cycle(carry, near.nan_to_num(0.0), 0)
    torch.testing.assert_close(ensembles[:, 0], analysis, **EXACT)
    assert not torch.allclose(ensembles, assimilate(model, observations, generator(5)))


def test_dropout_is_off_unless_asked_for():
    with_, without = (shaken(small_filter("original", dropout=p)) for p in (0.3, 0.0))
    observations = record(with_)
    assert torch.equal(assimilate(with_, observations, generator()), assimilate(without, observations, generator()))


@pytest.mark.parametrize("dropout", [False, True])
def test_a_seed_is_a_run(dropout):
    model = shaken(small_filter("original", dropout=0.3))
    observations = record(model)
    first, again = (assimilate(model, observations, generator(1), dropout=dropout) for _ in range(2))
    assert torch.equal(first, again)
    other = assimilate(model, observations, generator(1), dropout=not dropout)
    assert torch.equal(first, other) is False


def test_a_filter_in_single_precision_stays_there(model):
    observations = record(model).float()
    model.float()
    ensembles = assimilate(model, observations, generator())
    assert ensembles.dtype == torch.float32
    assert ensembles.isfinite().all()


def test_progress_is_shown_when_asked_for(capsys):
    model = small_filter()
    assimilate(model, record(model), generator())
    assert capsys.readouterr().err == ""
    assimilate(model, record(model), generator(), progress=True)
    assert "assimilate" in capsys.readouterr().err


# ---- how an analysis answers to an observation


@pytest.mark.parametrize("lag", [0, 1])
def test_the_mean_gain_is_that_of_finite_differences(lag):
    model = shaken(small_filter("hybrid", lag=lag, obs_conf=PARTIAL))
    observations = record(model)
    found = mean_gain(model, observations.numpy(), spinup=3, cycles=2, seed=6)
    assert found.shape == (SITES, SITES)
    expected, eps = torch.zeros(SITES, SITES, dtype=torch.float64), 1e-5
    carry = model.cold_start(generator=generator(6))
    for k in range(5):
        seen = observations[k].nan_to_num(0.0)
        if k >= 3:
            for j in range(SITES):
                step = eps * torch.eye(SITES, dtype=torch.float64)[j][None]
                with torch.no_grad():
                    above, below = (model.cycle(carry, seen + sign * step, k)[1].mean(-3)[0] for sign in (1, -1))
                expected[:, j] += (above - below) / (2 * eps) / 2
        carry = model.cycle(carry, seen, k)[0].detach()
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-6, atol=1e-7)
    unseen = [j for j in range(SITES) if j % 4 not in (3, 0)]  # by the cycles 3 and 4
    assert (found[:, unseen] == 0).all()
    assert (abs(found).max(0)[[j for j in range(SITES) if j not in unseen]] > 0.01).all()
