"""Training sees observations alone, learns, repeats itself to the bit, and goes on where it was stopped."""

import ast
import json
import math
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import CASES, Quick, climatology, generator, scales, shaken, small_analysis, small_filter

import assim_lib
from assim_lib import losses as losses_module
from assim_lib.experiments import Experiment, configure
from assim_lib.filters import AmortizedFilter, Carry, assimilate
from assim_lib.losses import (
    LARGEST_LOSS,
    LOSSES,
    NEEDS_TRUTH,
    Step,
    clean_analysis,
    ss_analysis,
    ss_forecast,
    trajectory_weight,
)
from assim_lib.observations import identity, observation_model
from assim_lib.storage import IntegrityError, sha256, write_json
from assim_lib.systems import Lorenz96
from assim_lib.training import Record, Trainer, in_settings, load_checkpoint, save_checkpoint
from assim_lib.trajectories import simulate

PARTIAL = "every_4th_dim_partial_obs"


@pytest.fixture(scope="module")
def data():
    """Truth and noise on a small ring, for whoever derives observations from them."""
    return simulate(Quick(sites=12), 0.1, cycles=200, segments=16, seed=4)


def truth_of(data):
    """What the observations see, of each cycle."""
    return torch.from_numpy(data.truth.values)[:, 1:]


def observations_of(data, model, noise=1.0):
    return model.observation_model.observe(truth_of(data), torch.from_numpy(data.unit_noise.values), noise)


def experiment(name="recurrent", m=4, lag=0, **options) -> Experiment:
    sizes = {"window": 3, "batch": 4, "pool": 6, "updates": 6, "cycles": 200, "segments": 16}
    settings = {**sizes, "dropout": 0.0, "test_dropout": False, "obs_conf": PARTIAL, **options}
    # Muon has nothing to say in six updates at the rate of a warm-up.
    return configure("l96_conv", analysis=name, m=m, lag=lag, lr=0.1, adamw_lr=0.1, **settings)


def filter_of(chosen):
    model = small_filter(
        chosen.analysis, chosen.m, chosen.lag, chosen.obs_conf, network=chosen.network, dropout=chosen.dropout
    )
    return shaken(model, size=0.05).float()


def trainer(data, name="recurrent", m=4, lag=0, near=None, **options) -> Trainer:
    chosen = experiment(name, m, lag, **options)
    model = filter_of(chosen)
    truth = truth_of(data) if chosen.loss in NEEDS_TRUTH else None
    return Trainer(chosen, model, Record(observations_of(data, model, chosen.noise), near, truth))


def only_course(trainer):
    (course,) = trainer.courses
    return course


@pytest.fixture(params=[(*case, lag) for case, lag in zip(CASES, (0, 2, 2, 0, 2, 2, 2), strict=True)], ids=str)
def case(request):
    """Every analysis, with and without lag, a single member, dropout where it is usual."""
    name, m, lag = request.param
    return {"name": name, "m": m, "lag": lag}


@pytest.fixture
def unbounded(monkeypatch):
    """Losses are exact squares, however large."""
    monkeypatch.setattr(losses_module, "LARGEST_LOSS", 1e9)


# ---- losses


def step(analysis, observation=None, mask=None, noise=1.0, operator=identity, forecast=None, ahead=None, **others):
    """What a cycle has to show; what is not said is the analysis, its mean, or everywhere; ``ahead`` is seen next, and where."""
    forecast = analysis if forecast is None else forecast
    observation = analysis.mean(-3) if observation is None else observation
    mask = torch.ones_like(observation) if mask is None else mask
    following, there = (observation, mask) if ahead is None else ahead
    settings = {"truth": observation, "operator": operator, "noise": noise, "weight": torch.ones(len(analysis)), **others}
    return Step(
        analysis=analysis,
        forecasts=forecast[:, None],
        observation=observation,
        mask=mask,
        next_observations=following[:, None],
        next_masks=there[:, None],
        **settings,
    )


def test_the_losses_by_hand():
    """What is not compared is far away."""
    analysis = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]], [[3.0, 2.0, 1.0, 0.0]]]])  # mean 2 everywhere
    numbers, mask = torch.tensor([[[2.0, 3.0, 4.0, 99.0]]]), torch.tensor([[[1.0, 1.0, 1.0, 0.0]]])
    far, ones = torch.full((1, 1, 4), 1e3), torch.ones(1, 1, 4)

    seen = step(analysis, numbers, mask, 2.0, forecast=far[:, None], ahead=(-far, ones), truth=-far)
    assert float(ss_analysis(seen)) == pytest.approx((0 + 1 + 4) / 3 / 4)
    assert float(ss_analysis(seen._replace(operator=lambda x: 2 * x))) == pytest.approx((4 + 1 + 0) / 3 / 4)

    ahead = step(far[:, None], -far, ones, 2.0, forecast=analysis, ahead=(numbers, mask), truth=-far)
    assert float(ss_forecast(ahead)) == pytest.approx((0 + 1 + 4) / 3 / 4)
    assert float(ss_forecast(ahead._replace(operator=lambda x: 2 * x))) == pytest.approx((4 + 1 + 0) / 3 / 4)

    # The truth of all sites, seen or not, as it is.
    truth = torch.tensor([[[2.0, 3.0, 4.0, 3.0]]])
    clean = step(analysis, -far, mask, 2.0, lambda x: 2 * x, forecast=far[:, None], truth=truth)
    assert float(clean_analysis(clean)) == pytest.approx((0 + 1 + 4 + 1) / 4 / 4)


@pytest.mark.parametrize("seen", [1, 8, 200])
def test_a_lost_trajectory_pulls_no_harder_the_farther_away_it_is(seen):
    bound = LARGEST_LOSS + 4 * (2 / seen) ** 0.5
    inside = 0.9 * bound**0.5
    innovation = torch.tensor([1.0, inside, 2 * bound, 1000.0]).view(4, 1, 1).expand(4, 1, seen)
    weight = trajectory_weight(innovation, torch.ones(4, 1, seen), 1.0)
    assert weight.tolist() == pytest.approx([1.0, 1.0, bound / (2 * bound) ** 2, bound / 1e6])


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_loss_is_the_weighted_mean_over_trajectories(loss):
    x = torch.arange(1.0, 5.0).view(4, 1, 1, 1)
    weight = torch.tensor([1.0, 0.5, 0.0, 0.25])
    value = loss(step(x, torch.zeros(4, 1, 1), weight=weight))
    assert float(value) == pytest.approx((1 + 0.5 * 4 + 0.25 * 16) / 4)


def test_the_weight_biases_nothing():
    """What weighs an error is known before the observation that it is measured with: the least loss is at the truth.

    A weight that looked at this error itself would pull the best guess of a skewed quantity away from its mean.
    """
    draws = 200_000
    error = torch.distributions.Exponential(1.0).sample((draws, 1, 1)) - 1  # skewed, mean zero
    last = 3 * torch.randn(draws, 1, 1, generator=generator())
    guess = torch.zeros(1, dtype=torch.float32, requires_grad=True)
    weight = trajectory_weight(last, torch.ones(draws, 1, 1), 1.0)
    ahead = error, torch.ones_like(error)
    loss = ss_forecast(step(guess.expand(draws, 1, 1, 1), error, ahead=ahead, weight=weight))
    (gradient,) = torch.autograd.grad(loss, guess)
    assert weight.min() < 0.5
    assert abs(float(gradient)) < 0.02


def test_a_filter_that_tracks_meets_the_bound_by_chance_only():
    """A good forecast's loss is 1 plus the scatter of the observation errors, the larger the fewer they are."""
    for seen in (1, 10, 40):
        errors = torch.randn(20000, seen, generator=generator(seen))
        bound = LARGEST_LOSS + 4 * (2 / seen) ** 0.5
        assert float((errors.square().mean(-1) > bound).float().mean()) < 0.01


@pytest.mark.parametrize("loss", [ss_forecast, ss_analysis])
def test_a_cycle_that_sees_nothing_costs_nothing(loss):
    x = torch.ones(2, 1, 1, 5, requires_grad=True)
    value = loss(step(x, torch.zeros(2, 1, 5), torch.zeros(2, 1, 5)))
    value.backward()
    assert float(value.detach()) == 0
    assert (x.grad == 0).all()


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_the_expected_loss_is_the_distance_to_the_truth_plus_one(noise):
    draws, sites = 4000, 200
    truth = torch.randn(sites, generator=generator(1), dtype=torch.float64)
    forecast = (truth + 0.4 * noise * torch.randn(sites, generator=generator(2), dtype=torch.float64)).requires_grad_()
    unit = torch.randn((draws, 1, sites), generator=generator(3), dtype=torch.float64)
    observation = truth + noise * unit
    ahead = observation, torch.ones_like(observation)
    loss = ss_forecast(step(forecast.expand(draws, 1, 1, sites), ahead=ahead, noise=noise))
    distance = (forecast - truth).square().mean() / noise**2
    assert 0.1 < distance < 0.3
    # Half a million independent errors: 1 ± 0.0016, and so on.
    assert float(loss.detach()) == pytest.approx(float(distance.detach()) + 1, abs=0.01)
    (of_loss,), (of_distance,) = (torch.autograd.grad(x, forecast) for x in (loss, distance))
    error = (of_loss - of_distance).norm() / of_distance.norm()
    assert error < 0.06


@pytest.mark.parametrize(("noise", "error"), [(0.5, 0.5), (2.0, 1.0)])
def test_only_an_observation_that_is_not_seen_knows_the_best_weight(noise, error, unbounded):
    """Analyses x + w (y − x) of a forecast x: the expected losses, by the arithmetic of independent errors."""
    draws, sites = 500, 400
    unit = torch.randn((4, draws, 1, sites), generator=generator(), dtype=torch.float64)
    truth, forecast = 3 * unit[0], 3 * unit[0] + error * unit[1]
    observation, another = truth + noise * unit[2], truth + noise * unit[3]
    best = error**2 / (error**2 + noise**2)
    expected: dict[str, list[float]] = {name: [] for name in LOSSES}
    weights = [0.0, best - 0.1, best, best + 0.1, 1.0]
    for w in weights:
        analysis = (forecast + w * (observation - forecast))[:, None]
        seen = step(analysis, observation, noise=noise, ahead=(another, torch.ones_like(another)), truth=truth)
        clean = ((1 - w) ** 2 * error**2 + w**2 * noise**2) / noise**2
        seen_itself = (1 - w) ** 2 * (error**2 + noise**2) / noise**2
        for name, value in {"clean_analysis": clean, "ss_analysis": seen_itself, "ss_forecast": clean + 1}.items():
            found = float(LOSSES[name](seen))
            assert found == pytest.approx(value, abs=0.02)
            expected[name].append(found)
    least = {name: weights[values.index(min(values))] for name, values in expected.items()}
    # The counterexample copies the observation, at no cost, while its error is that of the observation.
    assert least == {"clean_analysis": best, "ss_analysis": 1.0, "ss_forecast": best}
    assert expected["ss_analysis"][-1] == pytest.approx(0, abs=1e-20)
    assert expected["clean_analysis"][-1] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_every_loss_is_least_where_it_looks(loss):
    observation = torch.randn(5, 1, 8, generator=generator())
    perfect = observation[:, None].expand(5, 3, 1, 8)
    assert float(loss(step(perfect, observation))) < 1e-10
    assert float(loss(step(perfect + 0.5, observation))) > 0


# ---- what it is given


@pytest.mark.parametrize("loss", LOSSES)
def test_the_truth_cannot_enter(data, loss):
    """It is demanded by the one loss that is made of it, and refused by the others."""
    chosen = experiment(loss=loss)
    model = filter_of(chosen)
    record = Record(observations_of(data, model))
    with_truth = record._replace(truth=truth_of(data))
    fits, other, word = (with_truth, record, "without") if loss == "clean_analysis" else (record, with_truth, "with")
    with pytest.raises(ValueError, match=rf"^loss = '{loss}' and a record {word} the truth\.$"):
        Trainer(chosen, model, other)
    assert math.isfinite(next(Trainer(chosen, model, fits).fit())["loss"])


def test_the_truth_behind_the_observations_does_not_matter(data):
    """What the trainer is given is all there is: the truth may be forgotten."""
    forgetful = data.copy(deep=True)
    ours, theirs = trainer(data, updates=3), trainer(forgetful, updates=3)
    forgetful.truth.values[:] = math.nan
    assert list(ours.fit()) == list(theirs.fit())
    assert_same_run(ours, theirs)


def test_starts_near_numbers_are_near_those_of_the_cycle_of_entry(data):
    """At first, and whenever a filter starts anew."""
    truth = truth_of(data)
    near = torch.where(torch.arange(12) < 8, truth, math.nan)
    ours = trainer(data, near=near, pool=64, batch=64, noise=0.5, restart=1.0)
    course = only_course(ours)
    for update in range(3):
        around = truth[course.segment, course.position][:, None]
        error = (course.pool.base - around)[..., :8]
        assert float(error.std()) == pytest.approx(float(ours.model.analysis.noise), rel=0.1), update
        assert abs(float(error.mean())) < 0.1
        elsewhere = (course.pool.base - around)[..., 8:]
        assert float(elsewhere.std()) > 3
        assert torch.equal(course.pool.forecast, course.pool.base)
        advance(ours, 1)


def test_without_numbers_to_start_near_filters_start_from_the_climatology(data):
    ours = trainer(data, pool=64, batch=64, restart=1.0)
    states = {tuple(state) for state in ours.model.climatology.flatten(1).tolist()}
    for _ in range(2):
        assert {tuple(state) for state in only_course(ours).pool.base.reshape(-1, 12).tolist()} <= states
        advance(ours, 1)


# ---- unknown instruments


def losses_of_windows(data, position, perturbed, loss="ss_forecast", window=2, by=3.0):
    """The loss of windows from that position, and where they end; some cycles' observations are other ones."""
    ours = only_course(
        trainer(data, obs_conf="unstructured_partial_obs", network="ff", loss=loss, window=window, batch=6)
    )
    ours.segment, ours.position = torch.arange(6), torch.full((6,), position)
    for cycle in perturbed:
        ours.observations[:, cycle] += by * ours.model.observation_model.mask(cycle)
    value, carry = ours.unroll(torch.arange(6))
    return float(value.detach()), carry.base


def test_what_unknown_instruments_show_is_no_target_but_is_used(data, unbounded):
    # From an odd cycle on: seen by an unknown instrument, by a known one, and an unknown one's to be forecast.
    loss, carry = losses_of_windows(data, 9, [])
    assert loss > 0.1
    same, same_carry = losses_of_windows(data, 9, [11])
    assert same == loss
    assert torch.equal(same_carry, carry)
    other, other_carry = losses_of_windows(data, 9, [9])
    assert other != loss
    assert ((other_carry - carry).abs().amax((1, 2, 3)) > 1e-3).all()
    assert losses_of_windows(data, 9, [10])[0] != loss  # a known target


def test_what_unknown_instruments_show_is_no_target_of_an_analysis_either(data, unbounded):
    alone = {"loss": "ss_analysis", "window": 1}
    assert losses_of_windows(data, 8, [], **alone)[0] > 0
    (loss, carry), (same, other_carry) = (losses_of_windows(data, 9, which, **alone) for which in ([], [9]))
    assert loss == same == 0
    assert not torch.equal(carry, other_carry)


def test_supervision_knows_the_truth_of_every_cycle(data):
    for position in (8, 9):
        assert losses_of_windows(data, position, [], "clean_analysis", window=1)[0] > 0


# ---- windows


@pytest.mark.parametrize("loss", LOSSES)
def test_a_window_by_hand(data, case, loss, unbounded):
    """Filters of the pool go on where they stood: same trajectory, next cycle, right mask."""
    ours = trainer(data, **case, batch=6, noise=0.5, loss=loss, restart=0.0)
    course = only_course(ours)
    # Middle of the record: nobody starts anew.
    course.position = torch.tensor([0, 1, 2, 3, 50, 101])
    model, before = ours.model, Carry(*(part.clone() for part in course.pool))
    assert len(set(map(tuple, before.base.flatten(1).tolist()))) >= 5  # two of few states may be the same
    losses = []
    for i in range(6):
        carry = Carry(*(part[i] for part in before))
        record, truth = course.observations[course.segment[i]], truth_of(data)[course.segment[i]]
        start = int(course.position[i])
        for k in range(start, start + 3):
            with torch.no_grad():
                carry, analysis = model.cycle(carry, record[k], k)
            seen, next_seen = record[k] != 0, record[k + 1] != 0
            assert seen.sum() == next_seen.sum() == 3
            errors = {
                "ss_forecast": (carry.forecast.mean(-3) - record[k + 1])[next_seen],
                "ss_analysis": (analysis.mean(-3) - record[k])[seen],
                "clean_analysis": analysis.mean(-3) - truth[k],
            }
            losses.append(float(errors[loss].square().mean()) / 0.25)
        before.base[i], before.forecast[i], before.memory[i] = carry
    metrics = next(ours.fit())
    assert metrics["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-3)
    assert course.position.tolist() == [3, 4, 5, 6, 53, 104]
    for pooled, by_hand in zip(course.pool, before, strict=True):
        torch.testing.assert_close(pooled, by_hand, rtol=1e-3, atol=1e-3)


def test_filters_stay_within_their_record(data):
    ours = trainer(data, window=7, updates=40, pool=6, batch=4)
    course = only_course(ours)
    cycles, seen = course.observations.shape[1], set()
    for _ in ours.fit():
        assert int(course.position.min()) >= 0
        assert int(course.position.max()) + 7 < cycles
        seen |= {int(p) % 4 for p in course.position}
    assert seen == {0, 1, 2, 3}  # every phase of the schedule is met


def test_a_useless_gradient_changes_nothing_and_a_lost_filter_starts_anew(data):
    ours = trainer(data, batch=6)
    before = [p.clone() for p in ours.model.parameters()]
    course = only_course(ours)
    course.observations = torch.full_like(course.observations, math.nan)
    assert next(ours.fit())["skipped"] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, ours.model.parameters(), strict=True))
    assert all(part.isfinite().all() for part in course.pool)


# ---- it learns


def validation_rmse(data, model):
    observations = observations_of(data, model)
    ensembles = assimilate(model, observations, generator(8))
    return float((ensembles.mean(-3) - truth_of(data))[:, 20:].square().mean((-2, -1)).sqrt().mean())


@pytest.mark.parametrize(
    ("name", "m", "updates", "bound"), [("original", 4, 200, 1.0), ("recurrent", 1, 120, 0.8), ("hybrid", 6, 80, 0.42)]
)
def test_a_short_training_learns(data, name, m, updates, bound):
    model = small_filter(name, m, 0, "full_obs", hidden=16, memory=6).float()
    chosen = configure(
        "l96_conv", analysis=name, m=m, lag=0, updates=updates, window=3, batch=8, pool=16, cycles=200, dropout=0.0,
        test_dropout=False, lr=0.01, adamw_lr=0.01,
    )  # fmt: skip
    unseen = simulate(Quick(sites=12), 0.1, cycles=80, segments=8, seed=5)
    climatology = float(unseen.truth.std())
    before = validation_rmse(unseen, model)
    ours = Trainer(chosen, model, Record(observations_of(data, model)))
    losses = [metrics["loss"] for metrics in ours.fit()]
    assert sum(losses[-30:]) < 0.98 * sum(losses[:30])
    after = validation_rmse(unseen, ours.averaged)
    assert after < bound < climatology
    assert after < before


# ---- it repeats itself, and goes on


def states(trainer) -> dict[str, torch.Tensor]:
    """Everything that a run is, by name."""
    found = {**trainer.model.state_dict(), **{f"ema.{k}": v for k, v in trainer.ema.state_dict().items()}}
    for name, optimizer in trainer.optimizers.items():
        for index, values in optimizer.state_dict()["state"].items():
            found |= {f"{name}.{index}.{k}": torch.as_tensor(v) for k, v in values.items()}
    for i, course in enumerate(trainer.courses):
        found |= {f"{i}.pool.{k}": v for k, v in course.pool._asdict().items()}
        found |= {f"{i}.segment": course.segment, f"{i}.position": course.position}
    return found | {
        "generator": trainer.generator.get_state(),
        "update": torch.tensor([trainer.update, trainer.skipped]),
    }


def assert_same_run(one, other):
    first, second = states(one), states(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def advance(trainer, updates):
    return [metrics for _, metrics in zip(range(updates), trainer.fit(), strict=False)]


def test_a_seed_is_a_run(data, case):
    one, again = trainer(data, **case), trainer(data, **case)
    assert advance(one, 4) == advance(again, 4)
    assert_same_run(one, again)
    other = trainer(data, **case, seed=1)
    advance(other, 4)
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs if a.requires_grad)


@pytest.mark.parametrize("updates", [1, 3, 5])
def test_a_resumed_run_is_an_uninterrupted_one(data, case, tmp_path, updates):
    if case["name"] == "original":
        case = {**case, "dropout": 0.2}  # draws from the run's generator, too
    whole, first, second = (trainer(data, **case) for _ in range(3))
    metrics = list(whole.fit())
    advance(first, updates)
    first.save(tmp_path / "state.safetensors", {"history": [1.5]})
    list(first.fit())  # what happens afterwards is not in the file
    assert second.load(tmp_path / "state.safetensors") == {"history": [1.5]}
    assert second.update == updates
    assert list(second.fit()) == metrics[updates:]
    assert_same_run(second, whole)
    assert second.update == 6


def test_fit_may_be_left_and_entered_again(data):
    whole, parts = trainer(data), trainer(data)
    list(whole.fit())
    for updates in (2, 1, 3):
        assert len(advance(parts, updates)) == updates
    assert_same_run(parts, whole)
    assert list(parts.fit()) == []


def test_the_gradients_are_those_of_updates_and_change_no_weight(data):
    ours, other = trainer(data), trainer(data)
    before = {name: p.detach().clone() for name, p in ours.model.named_parameters()}
    gradients = ours.gradients(3)
    assert gradients.shape == (3, sum(p.numel() for p in ours.model.parameters() if p.requires_grad))
    assert all(torch.equal(p, before[name]) for name, p in ours.model.named_parameters())
    assert not torch.equal(gradients[0], gradients[1])
    # The first update of another trainer sees the same batch; clipped, its gradient has the same direction.
    advance(other, 1)
    first = torch.cat([p.grad.flatten() for p in other.model.parameters() if p.grad is not None])
    torch.testing.assert_close(first, gradients[0] * first.norm() / gradients[0].norm())
    assert ours.update == 0


@pytest.mark.parametrize("change", [{"noise": 2.0}, {"seed": 1}, {"lr": 0.01}, {"updates": 7}], ids=str)
def test_the_state_of_another_run_is_refused(data, tmp_path, change):
    one, other = trainer(data), trainer(data)
    one.save(tmp_path / "state.safetensors")
    other.experiment = other.experiment.model_copy(update=change)
    with pytest.raises(ValueError, match=r"^\S+state\.safetensors belongs to a run with other settings; [^\n]+\.$"):
        other.load(tmp_path / "state.safetensors")


def test_the_averaged_weights_follow_the_others(data):
    ours = trainer(data)
    assert ours.averaged is not ours.model
    advance(ours, 1)
    assert all(torch.equal(a, b) for a, b in zip(ours.model.parameters(), ours.averaged.parameters(), strict=True))
    before = [p.detach().clone() for p in ours.averaged.parameters()]
    advance(ours, 1)
    for old, new, averaged in zip(before, ours.model.parameters(), ours.averaged.parameters(), strict=True):
        decay = 2 / 11  # the memory of the average grows: (1 + n) / (10 + n), at most 0.995
        torch.testing.assert_close(averaged, decay * old + (1 - decay) * new)


def test_without_averaging_the_last_weights_count(data):
    last, averaged = trainer(data, averaging=0.0), trainer(data)
    for ours, same in ((last, True), (averaged, False)):
        advance(ours, 5)
        pairs = zip(ours.model.parameters(), ours.averaged.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) is same


def test_the_optimizer_of_the_hidden_matrices_is_the_one_that_is_asked_for(data):
    for name, kind in (("muon", torch.optim.Muon), ("adamw", torch.optim.AdamW)):
        ours = trainer(data, optimizer=name)
        assert type(ours.optimizers["hidden"]) is kind
        shapes = [p.ndim for group in ours.optimizers["hidden"].param_groups for p in group["params"]]
        assert shapes
        assert set(shapes) == {2}


def test_every_weight_has_one_optimizer(data, case):
    ours = trainer(data, **case)
    held = [
        id(p) for optimizer in ours.optimizers.values() for group in optimizer.param_groups for p in group["params"]
    ]
    assert sorted(held) == sorted(id(p) for p in ours.model.parameters())


def test_the_rate_warms_up_and_dies_away(data):
    ours = trainer(data, updates=1000)
    rates = []
    for ours.update in range(0, 1000, 10):
        rates.append(ours._set_learning_rate())
    assert rates[0] == pytest.approx(0.1 / 100)
    peak = rates.index(max(rates))
    assert peak in (9, 10)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 1e-3 * 0.1 * 2


def test_the_state_of_a_single_setting_is_as_it_was_before_there_were_several(data, tmp_path):
    """A run that was begun then goes on."""
    trainer(data).save(tmp_path / "state.safetensors")
    names = load_file(tmp_path / "state.safetensors").keys()
    assert names >= {"pool.base", "pool.forecast", "pool.memory", "segment", "position", "generator"}
    assert not any(name.startswith("course") for name in names)


# ---- many settings


@pytest.fixture
def settings():
    """Another error, mask and interval each."""
    chosen = experiment("hybrid", lag=1, pool=5, batch=4, updates=8, cycles=40, segments=2)
    changes = [
        {"noise": 0.5, "obs_conf": "random_50_moving", "step_size": 0.05},
        {"noise": 2.0, "obs_conf": "full_obs", "step_size": 0.1},
        {"noise": 1.3, "obs_conf": "every_4th_fixed", "step_size": 0.15},
    ]
    return [chosen.changed(seed=i, **change) for i, change in enumerate(changes)]


@pytest.fixture
def several(settings, monkeypatch):
    """A function that makes a run in these settings, always the same."""
    monkeypatch.setattr(training, "variations", lambda experiment: settings)

    def record(setting):
        seen = observation_model(setting.obs_conf, 1, 12)
        made = simulate(Quick(sites=12), setting.step_size, cycles=40, segments=2, seed=setting.seed)
        return Record(seen.observe(truth_of(made), torch.from_numpy(made.unit_noise.values), setting.noise))

    records = [record(setting) for setting in settings]

    def make(**options):
        chosen = settings[0].changed(settings=3, **{"noise": 1.0, "step_size": 0.1, **options})
        return Trainer(chosen, filter_of(chosen), *records)

    return make


def test_a_filter_elsewhere_has_the_same_weights(settings):
    """What trains one trains the other; the setting is its own."""
    model = filter_of(settings[0].changed(step_size=0.1))
    before = model.analysis.noise
    views = [m for _, m in in_settings(settings[0].changed(settings=3), model, settings)]
    for setting, view in zip(settings, views, strict=True):
        assert [id(p) for p in view.parameters()] == [id(p) for p in model.parameters()]
        assert view.analysis.noise == setting.noise
        assert view.steps == round(setting.step_size / 0.05)
        assert torch.equal(view.schedule.bool(), observation_model(setting.obs_conf, 1, 12).schedule)
        assert (view.lag, view.growth, view.clamp) == (model.lag, model.growth, model.clamp)
        assert (view.analysis.lagged, view.analysis.drift) == (model.analysis.lagged, model.analysis.drift)
    assert model.analysis.noise == before
    optimizer = torch.optim.SGD(views[0].parameters(), lr=0.1)
    carry = views[0].cold_start(2, generator=generator())
    views[0].cycle(carry, torch.ones(2, 1, 12), 0)[0].forecast.square().mean().backward()
    old = [p.detach().clone() for p in views[1].parameters()]
    optimizer.step()
    assert not all(torch.equal(a, b) for a, b in zip(old, views[1].parameters(), strict=True))
    model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})
    assert all(torch.equal(a, b) for a, b in zip(views[2].parameters(), model.parameters(), strict=True))
    # One setting alone is the filter itself.
    assert in_settings(settings[0], model, [settings[0]]) == [(settings[0], model)]


def built_in(setting, model):
    """A filter with the weights of another, built for a setting from the beginning."""
    seen = observation_model(setting.obs_conf, 1, 12)
    analysis = small_analysis("hybrid", 4, scales=scales(noise=setting.noise), lagged=True)
    built = AmortizedFilter(Lorenz96(sites=12), seen, analysis, setting.step_size, 1, climatology().clone())
    built.load_state_dict(model.state_dict())
    return built


def test_a_filter_elsewhere_is_the_one_that_is_built_there(settings):
    model = shaken(small_filter("hybrid", 4, 1))
    for setting in settings:
        seen = observation_model(setting.obs_conf, 1, 12)
        observations = torch.randn(2, 6, 1, 12, generator=generator(), dtype=torch.float64)
        there = model.elsewhere(seen, setting.noise, setting.step_size)
        ours, theirs = (assimilate(m, observations, generator(1)) for m in (there, built_in(setting, model)))
        assert torch.equal(ours, theirs)
        assert not torch.equal(ours, assimilate(model, observations, generator(1)))
    with pytest.raises(
        ValueError, match=r"^step_size = 0\.07 must be a positive multiple of the integration step 0\.05\.$"
    ):
        model.elsewhere(observation_model("full_obs", 1, 12), 1.0, 0.07)


def test_each_course_is_in_its_own_setting(several, settings, unbounded):
    """The loss of a window, by hand."""
    ours = several()
    assert len(ours.courses) == 3
    for setting, course in zip(settings, ours.courses, strict=True):
        seen, losses = observation_model(setting.obs_conf, 1, 12), []
        model = built_in(setting, ours.model).float()
        slots = torch.tensor([3, 1])
        for slot in slots.tolist():
            carry, start = Carry(*(part[slot] for part in course.pool)), int(course.position[slot])
            record = course.observations[course.segment[slot]]
            for k in range(start, start + 3):
                with torch.no_grad():
                    carry, _ = model.cycle(carry, record[k], k)
                where = seen.mask(k + 1)
                losses.append(
                    float((carry.forecast.mean(-3) - record[k + 1])[where].square().mean()) / setting.noise**2
                )
        assert float(course.unroll(slots)[0].detach()) == pytest.approx(sum(losses) / len(losses), rel=1e-3)


def test_each_update_is_in_one_course_and_all_have_their_turn(several):
    ours = several(updates=30)
    turns = [0, 0, 0]
    for _ in range(30):
        before = [states(ours)[f"{i}.pool.base"].clone() for i in range(3)]
        advance(ours, 1)
        (turn,) = [i for i in range(3) if not torch.equal(states(ours)[f"{i}.pool.base"], before[i])]
        turns[turn] += 1
    assert min(turns) >= 4


def test_a_run_in_many_settings_repeats_itself_and_goes_on(several, tmp_path):
    whole, again, first, second = (several() for _ in range(4))
    metrics = list(whole.fit())
    assert list(again.fit()) == metrics
    assert_same_run(again, whole)
    advance(first, 3)
    first.save(tmp_path / "state.safetensors")
    list(first.fit())
    second.load(tmp_path / "state.safetensors")
    assert list(second.fit()) == metrics[3:]
    assert_same_run(second, whole)


@pytest.mark.parametrize("records", [0, 2, 4])
def test_every_setting_has_a_record(several, records):
    ours = several()
    given = [course.record for course in ours.courses] * 2
    with pytest.raises(ValueError, match=r"argument 2 is (shorter|longer)"):
        Trainer(ours.experiment, ours.model, *given[:records])


# ---- checkpoints


@pytest.fixture
def checkpoint(tmp_path):
    model = shaken(small_filter("hybrid", lag=1)).float()
    path = tmp_path / "filter.safetensors"
    save_checkpoint(model, path, {"experiment": {"m": 4}, "seconds": 1.5})
    return path, model


def test_a_checkpoint_comes_back(checkpoint):
    path, model = checkpoint
    weights, record = load_checkpoint(path)
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert record == {"sha256": sha256(path), "experiment": {"m": 4}, "seconds": 1.5}
    assert sorted(p.name for p in path.parent.iterdir()) == ["filter.json", "filter.safetensors"]


def test_changed_weights_are_refused(checkpoint):
    path, _ = checkpoint
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"^filter\.safetensors is corrupt: [^\n]+\.$"):
        load_checkpoint(path)


@pytest.mark.parametrize("missing", [".json", ".safetensors"])
def test_half_a_checkpoint_is_one_sentence(checkpoint, missing):
    path, _ = checkpoint
    path.with_suffix(missing).unlink()
    with pytest.raises(FileNotFoundError, match=r"^no checkpoint filter in [^\n]+ are needed\.$"):
        load_checkpoint(path)


def test_weights_without_a_checksum_are_refused(checkpoint):
    path, _ = checkpoint
    write_json(path.with_suffix(".json"), {"experiment": {}})
    with pytest.raises(IntegrityError, match=r"^filter\.json has no sha256; [^\n]+\.$"):
        load_checkpoint(path)


class Mischief:
    def __reduce__(self):
        return Path.touch, (Path("mischief"),)


@pytest.mark.parametrize("write", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_nothing_that_is_loaded_can_run_code(data, tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.safetensors"
    with path.open("wb") as file:
        write(Mischief(), file)
    write_json(path.with_suffix(".json"), {"sha256": sha256(path)})
    for load in (load_checkpoint, trainer(data).load):
        with pytest.raises(Exception, match=r"(?i)header|safetensor|invalid|deserializ"):
            load(path)
    assert not Path("mischief").exists()


def test_the_library_knows_no_pickle():
    dangerous = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for path in Path(assim_lib.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
                assert not {name.split(".")[0] for name in names} & dangerous, path.name
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert f"{node.value.id}.{node.attr}" not in {"torch.load", "torch.save", "np.load", "pd.read_pickle"}
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec", "__import__"}


def test_a_state_file_says_what_it_belongs_to(data, tmp_path):
    ours = trainer(data)
    ours.save(tmp_path / "state.safetensors", {"a": 1})
    from safetensors import safe_open

    with safe_open(tmp_path / "state.safetensors", "pt") as file:
        header = file.metadata()
    assert Experiment.model_validate_json(header["experiment"]) == ours.experiment
    assert json.loads(header["note"]) == {"a": 1}
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors", {"experiment": "{}"})
    with pytest.raises(ValueError, match="belongs to a run with other settings"):
        trainer(data).load(tmp_path / "other.safetensors")
