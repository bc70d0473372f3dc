"""Filters of a pool: each somewhere along a record, and a window further with each update."""

import math

import pytest
import torch
from small import CASES
from small_runs import (
    advance,
    built_in,
    many_settings_trainer,
    ring_data,
    ring_experiment,
    ring_filter,
    ring_pool,
    ring_trainer,
    ring_truth,
)

from assim_lib import losses as losses_module
from assim_lib.losses import LOSSES
from assim_lib.training.many_settings import training_settings
from assim_lib.training.trainer import Trainer

UNKNOWN = {"obs_conf": "unstructured_partial_obs", "network": "ff"}


@pytest.fixture
def unbounded(monkeypatch):
    """Losses are exact squares, however large."""
    monkeypatch.setattr(losses_module, "LARGEST_LOSS", 1e9)


def windows_from(position, pool):
    """All filters of a pool at the same cycle, each in a trajectory of its own; their loss and where they end."""
    slots = torch.arange(len(pool.position))
    pool.segment, pool.position = slots, torch.full_like(slots, position)
    loss, carry = pool.unroll(pool.window(slots))
    return float(loss.detach()), carry


# ---- what it is given


@pytest.mark.parametrize("loss", LOSSES)
def test_the_truth_cannot_enter(loss):
    """It is demanded by the one loss that is made of it, and refused by the others."""
    chosen = ring_experiment(loss=loss)
    data, model = ring_data(chosen), ring_filter(chosen)
    other, word = (
        (data._replace(truth=None), "out") if loss == "clean_analysis" else (data._replace(truth=ring_truth()), "")
    )
    with pytest.raises(ValueError, match=rf"^loss = '{loss}' and training data with{word} the truth\.$"):
        Trainer(chosen, model, other)
    assert math.isfinite(next(Trainer(chosen, model, data).fit())["loss"])


def test_starts_near_numbers_are_near_those_of_the_cycle_of_entry():
    """At first, and whenever a filter starts anew."""
    truth = ring_truth()
    near = torch.where(torch.arange(12) < 8, truth, math.nan)
    trainer = ring_trainer(near=near, pool=64, batch=64, noise=0.5, restart=1.0)
    (pool,) = trainer.pools
    for update in range(3):
        error = pool.carry.base - truth[pool.segment, pool.position][:, None]
        assert float(error[..., :8].std()) == pytest.approx(0.5, rel=0.1), update
        assert abs(float(error[..., :8].mean())) < 0.1
        assert float(error[..., 8:].std()) > 3
        assert torch.equal(pool.carry.forecast, pool.carry.base)
        advance(trainer, 1)


def test_without_numbers_to_start_near_filters_start_from_the_climatology():
    trainer = ring_trainer(pool=64, batch=64, restart=1.0)
    states = {tuple(state) for state in trainer.model.climatology.flatten(1).tolist()}
    for _ in range(2):
        assert {tuple(state) for state in trainer.pools[0].carry.base.reshape(-1, 12).tolist()} <= states
        advance(trainer, 1)


# ---- what is compared


def perturbed(cycles, position, by=3.0, **options):
    """The loss of windows from that position, and where they end; the observations of some cycles are other ones."""
    pool = ring_pool(**UNKNOWN, batch=6, **{"window": 2, **options})
    for cycle in cycles:
        pool.data.observations[:, cycle] += by
    return windows_from(position, pool)


def test_what_unknown_instruments_show_is_no_target_but_is_used(unbounded):
    # From an odd cycle on: seen by an unknown instrument, by a known one, and an unknown one's to be forecast.
    loss, end = perturbed([], 9)
    assert loss > 0.1
    same, same_end = perturbed([11], 9)
    assert same == loss
    assert torch.equal(same_end.base, end.base)
    other, other_end = perturbed([9], 9)
    assert other != loss
    assert ((other_end.base - end.base).abs().amax((1, 2, 3)) > 1e-3).all()
    assert perturbed([10], 9)[0] != loss  # a known target


def test_what_unknown_instruments_show_is_no_target_of_an_analysis_but_the_truth_is(unbounded):
    alone = {"loss": "ss_analysis", "window": 1}
    assert perturbed([], 8, **alone)[0] > 0
    (loss, end), (same, other_end) = (perturbed(which, 9, **alone) for which in ([], [9]))
    assert loss == same == 0
    assert not torch.equal(end.base, other_end.base)
    assert perturbed([], 9, loss="clean_analysis", window=1)[0] > 0


@pytest.mark.parametrize("missing", [math.nan, math.inf, -math.inf])
def test_what_was_not_received_is_neither_compared_nor_assimilated(unbounded, missing):
    """A gap in a record is as if the schedule had none there."""
    whole, end = windows_from(20, ring_pool("hybrid", obs_conf="full_obs", batch=6, noise=0.5))
    pool = ring_pool("hybrid", obs_conf="full_obs", batch=6, noise=0.5)
    gaps = [(20, 0), (21, 1), (21, 5), (23, 7)]
    for cycle, site in gaps:
        pool.data.observations[:, cycle, :, site] = missing
    loss, carry = windows_from(20, pool)
    # As filters that are scheduled to see no more than that.
    fewer = ring_pool("hybrid", obs_conf="full_obs", batch=6, noise=0.5)
    for name in ("schedule", "known"):
        mask = getattr(fewer.model, name).repeat(24, 1, 1)
        for cycle, site in gaps:
            mask[cycle, :, site] = 0
        setattr(fewer.model, name, mask)
    expected, same = windows_from(20, fewer)
    assert loss == pytest.approx(expected)
    torch.testing.assert_close(carry.base, same.base)
    assert math.isfinite(loss)
    assert loss != pytest.approx(whole)
    assert not torch.allclose(carry.base, end.base)


def test_a_lost_filter_starts_anew_and_its_gradient_changes_nothing():
    trainer = ring_trainer(batch=6)
    before = [p.clone() for p in trainer.model.parameters()]
    (pool,) = trainer.pools
    pool.carry = pool.carry.each(lambda part: torch.full_like(part, math.nan))
    assert next(trainer.fit())["skipped"] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert all(part.isfinite().all() for part in pool.carry.tensors().values())


# ---- windows


def window_by_hand(pool, slot, errors_of, phase_of=lambda segment, cycle: cycle, model=None):
    """The loss of the window of a filter of the pool, and where it ends."""
    model, chosen = model or pool.model, pool.experiment
    source = torch.Generator()
    source.set_state(pool.generator.get_state())
    carry = pool.carry.each(lambda part: part[slot].clone())
    segment, start = int(pool.segment[slot]), int(pool.position[slot])
    losses = []
    for k in range(start, start + chosen.window):
        with torch.no_grad():
            carry, analysis = model.cycle(carry, pool.data.observations[segment, k], phase_of(segment, k), source)
        losses.append(errors_of(carry, analysis, segment, k))
    return sum(losses) / len(losses), carry


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "case", [(*case, lag) for case, lag in zip(CASES, (0, 2, 2, 0, 2, 2, 2), strict=True)], ids=str
)
def test_a_window_by_hand(case, loss, unbounded):
    """Filters of the pool go on where they stood: same trajectory, next cycle, right mask."""
    pool = ring_pool(*case, batch=6, noise=0.5, loss=loss, restart=0.0)
    # Middle of the record: nobody starts anew.
    pool.position = torch.tensor([0, 1, 2, 3, 50, 101])
    assert len(set(map(tuple, pool.carry.base.flatten(1).tolist()))) >= 5  # two of few states may be the same

    def errors(carry, analysis, segment, k):
        now, ahead = pool.data.observations[segment, k : k + 2]
        assert now.isfinite().sum() == ahead.isfinite().sum() == 3
        difference = {
            "ss_forecast": (carry.forecast.mean(-3) - ahead)[ahead.isfinite()],
            "ss_analysis": (analysis.mean(-3) - now)[now.isfinite()],
            "clean_analysis": analysis.mean(-3) - ring_truth()[segment, k],
        }
        return float(difference[loss].square().mean()) / 0.25

    values, ends = zip(*(window_by_hand(pool, slot, errors) for slot in range(6)), strict=True)
    slots = torch.arange(6)
    value, end = pool.unroll(pool.window(slots))
    assert float(value.detach()) == pytest.approx(sum(values) / 6, rel=1e-3)
    pool.advance(slots, end)
    assert pool.position.tolist() == [3, 4, 5, 6, 53, 104]
    for name, part in pool.carry.tensors().items():
        expected = torch.stack([getattr(end, name) for end in ends])
        torch.testing.assert_close(part, expected, rtol=1e-3, atol=1e-3)


def test_a_window_with_two_leads_by_hand(unbounded):
    """Each forecast is scored by the next observation and by that after it."""
    pool = ring_pool("hybrid", 4, 1, leads=2, batch=6, noise=0.5)
    pool.position = torch.tensor([0, 1, 2, 3, 50, 101])

    def errors(carry, _, segment, k):
        forecasts = [carry.forecast, pool.model.flow(carry.forecast)]
        squares = []
        for lead, forecast in enumerate(forecasts, 1):
            ahead = pool.data.observations[segment, k + lead]
            squares.append(float((forecast.mean(-3) - ahead)[ahead.isfinite()].square().mean()) / 0.25)
        return sum(squares) / 2

    by_hand = [window_by_hand(pool, slot, errors)[0] for slot in range(6)]
    assert float(pool.unroll(pool.window(torch.arange(6)))[0].detach()) == pytest.approx(sum(by_hand) / 6, rel=1e-3)


def test_filters_in_random_order_know_which_instruments_they_meet(unbounded):
    phase = torch.randint(4, (16, 200), generator=torch.Generator().manual_seed(1))
    pool = ring_pool("hybrid", order="random", phase=phase, batch=6)

    def errors(carry, _, segment, k):
        ahead = pool.data.observations[segment, k + 1]
        seen = torch.arange(12) % 4 == phase[segment, k + 1]
        assert torch.equal(seen, ahead[0].isfinite())
        return float((carry.forecast.mean(-3) - ahead)[:, seen].square().mean())

    drawn = [window_by_hand(pool, slot, errors, lambda segment, k: int(phase[segment, k])) for slot in range(6)]
    loss, end = pool.unroll(pool.window(torch.arange(6)))
    assert float(loss.detach()) == pytest.approx(sum(value for value, _ in drawn) / 6, rel=1e-3)
    torch.testing.assert_close(end.base, torch.stack([carry.base for _, carry in drawn]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("order", ["schedule", "random"])
def test_errors_are_drawn_anew_at_each_pass(order):
    """In random order, the instruments as well."""
    pool = ring_pool(noise_draws="each", order=order, noise=0.5)
    cycles = torch.arange(200).expand(16, 200)
    (first, phase), (second, other) = (pool._received(torch.arange(16), cycles) for _ in range(2))
    for received, entry in ((first, phase), (second, other)):
        seen = torch.arange(12) % 4 == entry[..., None, None]
        assert torch.equal(received.isfinite(), seen)
        errors = (received - ring_truth())[seen]
        assert float(errors.std()) == pytest.approx(0.5, rel=0.03)
        assert abs(float(errors.mean())) < 0.02
    both = first.isfinite() & second.isfinite()
    assert not (first == second)[both].any()
    assert torch.equal(phase, other) == (order == "schedule")
    if order == "schedule":
        assert torch.equal(phase, cycles % 4)
    else:
        assert 0.2 < float((phase == other).float().mean()) < 0.3


@pytest.mark.parametrize("leads", [1, 4])
def test_filters_stay_within_their_record(leads):
    pool, phases = ring_pool(window=7, leads=leads), set()
    for _ in range(60):
        slots = pool.choose()
        pool.advance(slots, pool.carry.each(lambda part, slots=slots: part[slots]))
        assert int(pool.position.min()) >= 0
        assert int(pool.position.max()) + 7 + leads - 1 < 200
        phases |= {int(p) % 4 for p in pool.position}
    assert phases == {0, 1, 2, 3}  # every entry of the schedule is met


@pytest.mark.parametrize(("restart", "share"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_a_share_of_the_filters_starts_anew_after_each_window(restart, share):
    trainer = ring_trainer(pool=64, batch=64, window=1, restart=restart)
    (pool,) = trainer.pools
    pool.position = torch.full_like(pool.position, 50)
    advance(trainer, 1)
    # Without memory, and at a cycle at random.
    anew = (pool.carry.memory == 0).flatten(1).all(1)
    assert float(anew.float().mean()) == pytest.approx(share, abs=0.2)
    assert (pool.position[~anew] == 51).all()
    if restart:
        assert len(set(pool.position[anew].tolist())) > 10


def test_a_lag_that_grows_has_grown_before_a_filter_is_trained():
    """It meets the cycles before those of its first window as a new filter does."""
    pool = ring_pool("extended", 1, 2, lag_warmup=5)
    model = pool.model
    assert int(pool.position.min()) >= model.warmup == 10
    states = []
    source = torch.Generator().manual_seed(3)
    carry = model.cold_start(6, generator=source)
    for age in range(10):
        cycle = pool.position - 10 + age
        with torch.no_grad():
            carry, _ = model.cycle(carry, pool.data.observations[pool.segment, cycle], cycle, age=age)
        states.append(carry)
    pool.generator = torch.Generator().manual_seed(3)
    for name, part in pool._cold_start(pool.segment, pool.position).tensors().items():
        torch.testing.assert_close(part, getattr(states[-1], name))


def test_each_pool_is_in_its_own_setting(unbounded):
    """As a filter is that was built for the setting from the beginning."""
    trainer = many_settings_trainer()
    settings = training_settings(trainer.experiment)
    kinds = [{getattr(setting, name) for setting in settings} for name in ("step_size", "noise", "obs_conf")]
    assert list(map(len, kinds)) == [3, 3, 3]
    for setting, pool in zip(settings, trainer.pools, strict=True):
        model, slots = built_in(setting, trainer.model).float(), torch.tensor([3, 1])

        def errors(carry, _, segment, k, pool=pool, noise=setting.noise):
            ahead = pool.data.observations[segment, k + 1]
            return float((carry.forecast.mean(-3) - ahead)[ahead.isfinite()].square().mean()) / noise**2

        by_hand = [window_by_hand(pool, int(slot), errors, model=model)[0] for slot in slots]
        assert float(pool.unroll(pool.window(slots))[0].detach()) == pytest.approx(sum(by_hand) / 2, rel=1e-3)
