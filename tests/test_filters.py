"""One cycle is what its description says, at every lag; and its gradients are those of the whole."""

import inspect
import math

import pytest
import torch
from small import CASES, SITES, climatology, generator, shaken, small_filter

from assim_lib.analyses import AnalysisInput
from assim_lib.filters import AmortizedFilter, Carry, assimilate

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
    assert (carry.memory == 0).all()
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
    )
    corrected, memory = model.analysis(given)
    assert (corrected > model.highest).any()
    corrected = corrected.clamp(model.lowest, model.highest)
    torch.testing.assert_close(analysis, model.dynamics.flow(corrected, 2 * lag), **EXACT)
    torch.testing.assert_close(after.forecast, model.dynamics.flow(analysis, 2), **EXACT)
    torch.testing.assert_close(after.base, model.dynamics.flow(corrected, 2), **EXACT)
    assert torch.equal(after.memory, memory)
    # The next cycle's forecast is again the flow of its base over the lag.
    torch.testing.assert_close(after.forecast, model.dynamics.flow(after.base, 2 * lag), **EXACT)
    assert analysis.shape == carry.base.shape


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
