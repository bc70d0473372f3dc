"""Training learns, repeats itself to the bit, and goes on where it was stopped."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from small import CASES, generator, small_filter
from small_runs import (
    advance,
    assert_same,
    assert_same_run,
    many_settings_trainer,
    ring,
    ring_data,
    ring_experiment,
    ring_filter,
    ring_trainer,
)

from assim_lib.tracking import assimilate
from assim_lib.training import trainer as trainer_module
from assim_lib.training.data import TrainingData
from assim_lib.training.experiment import Experiment
from assim_lib.training.muon import Muon
from assim_lib.training.trainer import NothingLearnedError, Trainer
from assim_lib.trajectories import observed

# Every analysis, with and without lag, a single member, dropout where it draws from the run's generator.
OPTIONS = ({"dropout": 0.2}, {"lag": 2}, {"lag": 2}, {}, {"lag": 2}, {"lag": 2}, {"lag": 2})
RUNS = [{"name": name, "m": m, **options} for (name, m), options in zip(CASES, OPTIONS, strict=True)]
every_analysis = pytest.mark.parametrize("case", RUNS, ids=lambda case: f"{case['name']}-{case['m']}")


def hidden_weights(model):
    return {name: p.detach().clone() for name, p in model.analysis.trunk.named_parameters()}


# ---- it learns


@pytest.mark.parametrize(
    ("name", "m", "updates", "bound"), [("original", 4, 110, 2.0), ("recurrent", 1, 80, 0.9), ("hybrid", 6, 40, 0.42)]
)
def test_a_short_training_learns(unchecked_shapes, name, m, updates, bound):
    model = small_filter(name, m, 0, "full_obs", hidden=16, memory=6).float()
    sizes = {"updates": updates, "batch": 8, "pool": 16, "lr": 0.01, "adamw_lr": 0.01}
    chosen = ring_experiment(name, m, obs_conf="full_obs", network="conv", **sizes)
    truth, unseen = observed(ring(80, 8, 5), model.observation_model)

    def rmse(model):
        error = assimilate(model, unseen, generator(8)).mean(-3) - truth
        return float(error[:, 20:].square().mean((-2, -1)).sqrt().mean())

    before = rmse(model)
    trainer = Trainer(chosen, model, ring_data(chosen))
    losses = [metrics["loss"] for metrics in trainer.fit()]
    assert sum(losses[-30:]) < 0.98 * sum(losses[:30])
    after = rmse(trainer.averaged)
    assert after < bound < float(truth.std())
    assert after < before


def test_the_truth_behind_the_observations_does_not_matter():
    """What the trainer is given is all there is: the truth may be forgotten."""
    chosen = ring_experiment(updates=3)
    forgetful = ring().copy(deep=True)
    model = ring_filter(chosen)
    _, observations = observed(forgetful, model.observation_model)
    theirs = Trainer(chosen, model, TrainingData(observations))
    forgetful.truth.values[:] = math.nan
    ours = ring_trainer(updates=3)
    assert list(ours.fit()) == list(theirs.fit())
    assert_same_run(ours, theirs)


def test_a_filter_may_be_trained_with_fewer_members_than_it_has():
    """Of one memory each, with the same weights."""
    trainer = ring_trainer("original", 6, training_m=2, batch=6)
    (pool,) = trainer.pools
    assert [part.shape[1] for part in pool.carry.tensors().values()] == [2, 2, 2]
    assert trainer.model.analysis.members == trainer.averaged.analysis.members == 6
    assert [id(p) for p in pool.model.parameters()] == [id(p) for p in trainer.model.parameters()]
    before = hidden_weights(trainer.model)
    advance(trainer, 2)
    assert not any(torch.equal(p, before[name]) for name, p in trainer.model.analysis.trunk.named_parameters())
    observations = torch.randn(3, 1, 12, generator=generator())
    assert assimilate(trainer.averaged, observations, generator()).shape == (3, 6, 1, 12)
    # With as many as it has, another run.
    whole = ring_trainer("original", 6, batch=6)
    assert whole.pools[0].carry.base.shape[1] == 6
    assert advance(whole, 1) != advance(ring_trainer("original", 6, training_m=2, batch=6), 1)


@pytest.mark.parametrize("name", ["recurrent", "hybrid"])
def test_the_lag_grows_in_training_and_all_start_anew(name):
    trainer, lags = ring_trainer(name, lag=3, first_lag=1, lag_warmup=1, restart=0.0), []
    for metrics in trainer.fit():
        (pool,) = trainer.pools
        lags.append(trainer.lag)
        assert trainer.averaged.lag == pool.model.lag == pool.unrolled.analysis.lag == trainer.lag
        ahead = pool.model.flow(pool.carry.base, trainer.lag)
        torch.testing.assert_close(pool.carry.forecast, ahead, rtol=1e-4, atol=1e-4)
        assert metrics["update"] == len(lags)
    assert lags == [1, 1, 2, 2, 3, 3]
    assert trainer.averaged.lag == trainer.model.lag == 3


# ---- it repeats itself, and goes on


@every_analysis
def test_a_seed_is_a_run_that_goes_on_where_it_was_saved(tmp_path, case):
    whole, first, second = (ring_trainer(**case) for _ in range(3))
    metrics = list(whole.fit())
    advance(first, 3)
    first.save(tmp_path / "state.safetensors", {"history": [1.5]})
    assert list(first.fit()) == metrics[3:]  # what happens afterwards is not in the file
    assert_same_run(first, whole)
    assert second.load(tmp_path / "state.safetensors") == {"history": [1.5]}
    assert second.update == 3
    assert list(second.fit()) == metrics[3:]
    assert_same_run(second, whole)
    assert list(second.fit()) == []
    other = ring_trainer(**case, seed=1)
    advance(other, 6)
    pairs = zip(whole.model.parameters(), other.model.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs if a.requires_grad)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (ring_trainer, {"order": "random", "noise_draws": "each"}),
        (ring_trainer, {"leads": 2, "rates": "steps"}),
        (ring_trainer, {"training_m": 2}),
        (ring_trainer, {"lag": 3, "first_lag": 2}),  # it grows where the run is stopped
        (ring_trainer, {"lag": 3, "first_lag": 1}),  # in between
        (many_settings_trainer, {"updates": 6}),
    ],
)
def test_whatever_is_drawn_on_the_way_goes_on_as_well(tmp_path, make, options):
    whole, first, second = (make(**options) for _ in range(3))
    metrics = list(whole.fit())
    advance(first, 3)
    first.save(tmp_path / "state.safetensors")
    second.load(tmp_path / "state.safetensors")
    assert list(second.fit()) == metrics[3:]
    assert_same_run(second, whole)


@pytest.mark.parametrize("change", [{"noise": 2.0}, {"seed": 1}, {"lr": 0.01}, {"updates": 7}], ids=str)
def test_the_state_of_another_run_is_refused(tmp_path, change):
    one, other = ring_trainer(), ring_trainer()
    one.save(tmp_path / "state.safetensors", {"a": 1})
    with safe_open(tmp_path / "state.safetensors", "pt") as file:
        header = file.metadata()
    assert Experiment.model_validate_json(header["experiment"]) == one.experiment
    assert json.loads(header["note"]) == {"a": 1}
    other.experiment = other.experiment.model_copy(update=change)
    with pytest.raises(ValueError, match=r"^\S+state\.safetensors belongs to a run with other options; [^\n]+\.$"):
        other.load(tmp_path / "state.safetensors")


def test_a_file_of_something_else_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors", {"experiment": "{}"})
    with pytest.raises(ValueError, match="belongs to a run with other options"):
        ring_trainer().load(tmp_path / "other.safetensors")


# ---- updates


def test_the_gradients_are_those_of_updates_and_change_no_weight():
    ours, other = ring_trainer(), ring_trainer()
    before = hidden_weights(ours.model)
    gradients = ours.gradients(3)
    assert gradients.shape == (3, sum(p.numel() for p in ours.model.parameters() if p.requires_grad))
    assert_same(hidden_weights(ours.model), before)
    assert not torch.equal(gradients[0], gradients[1])
    # The first update of another trainer sees the same batch; clipped, its gradient has the same direction.
    advance(other, 1)
    first = torch.cat([p.grad.flatten() for p in other.model.parameters() if p.grad is not None])
    torch.testing.assert_close(first, gradients[0] * first.norm() / gradients[0].norm())
    assert ours.update == 0


def test_the_averaged_weights_follow_the_others():
    ours = ring_trainer()
    assert ours.averaged is not ours.model
    advance(ours, 1)
    assert all(torch.equal(a, b) for a, b in zip(ours.model.parameters(), ours.averaged.parameters(), strict=True))
    before = [p.detach().clone() for p in ours.averaged.parameters()]
    advance(ours, 1)
    for old, new, averaged in zip(before, ours.model.parameters(), ours.averaged.parameters(), strict=True):
        decay = 2 / 11  # the memory of the average grows: (1 + n) / (10 + n), at most 0.995
        torch.testing.assert_close(averaged, decay * old + (1 - decay) * new)


def test_without_averaging_the_last_weights_count():
    for averaging, same in ((0.0, True), (0.995, False)):
        ours = ring_trainer(averaging=averaging)
        advance(ours, 3)
        pairs = zip(ours.model.parameters(), ours.averaged.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) is same


@every_analysis
@pytest.mark.parametrize(("name", "kind"), [("muon", Muon), ("adamw", torch.optim.AdamW)])
def test_every_weight_has_one_optimizer_the_hidden_matrices_the_one_that_is_asked_for(case, name, kind):
    ours = ring_trainer(**case, optimizer=name)
    held = {
        part: [p for group in optimizer.param_groups for p in group["params"]]
        for part, optimizer in ours.optimizers.items()
    }
    assert type(ours.optimizers["hidden"]) is kind
    assert {p.ndim for p in held["hidden"]} == {2}
    assert sorted(map(id, held["hidden"] + held["others"])) == sorted(map(id, ours.model.parameters()))


def test_what_a_network_reads_out_with_is_no_hidden_matrix():
    """Of the paper's feed-forward network too, which has two of it."""
    ours = ring_trainer("original", 4, network="ff_original")
    hidden = [p for group in ours.optimizers["hidden"].param_groups for p in group["params"]]
    named = {id(p): name for name, p in ours.model.named_parameters()}
    assert hidden
    assert [named[id(p)] for p in hidden if "heads" in named[id(p)]] == []


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_hidden_matrices_decay_as_much_as_is_asked_for(optimizer):
    """In learning rates, before the step that the gradient makes; other weights do not."""
    decays, free = (ring_trainer(optimizer=optimizer, weight_decay=decay, clip_norm=1e9) for decay in (0.5, 0.0))
    before = hidden_weights(free.model)
    rate = advance(decays, 1)[0]["rate"]
    advance(free, 1)
    assert rate == pytest.approx(0.1 / 100)  # of a warm-up
    matrices = [id(p) for group in decays.optimizers["hidden"].param_groups for p in group["params"]]
    for (name, p), other in zip(
        decays.model.analysis.trunk.named_parameters(), free.model.analysis.trunk.parameters(), strict=True
    ):
        lost = 0.5 * rate * before[name] if id(p) in matrices else torch.zeros_like(p)
        torch.testing.assert_close(p.detach(), other.detach() - lost, rtol=1e-4, atol=1e-7)


def rates(**options):
    """Of the hidden matrices, one in ten updates of a thousand."""
    ours = ring_trainer(updates=1000, **options)
    found = []
    for ours.update in range(0, 1000, 10):
        found.append(ours._set_learning_rate())
        assert ours.optimizers["hidden"].param_groups[0]["lr"] == found[-1]
        assert ours.optimizers["others"].param_groups[0]["lr"] == pytest.approx(2 * found[-1])
    return found


def test_the_rate_warms_up_and_dies_away():
    found = rates(adamw_lr=0.2)
    assert found[0] == pytest.approx(0.1 / 100)
    peak = found.index(max(found))
    assert peak in (9, 10)
    assert found[:peak] == sorted(found[:peak])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    assert found[-1] < 1e-3 * 0.1 * 2


def test_the_rate_goes_up_over_a_tenth_and_down_in_two_steps():
    found = rates(adamw_lr=0.2, rates="steps")
    assert found[:10] == pytest.approx([0.1 * 0.37 ** (1 - k / 10) for k in range(10)])
    assert found[10:] == pytest.approx([0.1] * 30 + [0.05] * 40 + [0.025] * 20)


# ---- many settings


def test_each_update_is_in_one_pool_and_all_have_their_turn():
    ours, turns = many_settings_trainer(updates=15), []
    for _ in range(15):
        before = [pool.carry.base.clone() for pool in ours.pools]
        advance(ours, 1)
        turns += [i for i, pool in enumerate(ours.pools) if not torch.equal(pool.carry.base, before[i])]
    assert len(turns) == 15
    assert min(map(turns.count, range(3))) >= 2


@pytest.mark.parametrize("number", [0, 2, 4])
def test_every_setting_has_its_data(number):
    ours = many_settings_trainer()
    given = [pool.data for pool in ours.pools] * 2
    with pytest.raises(ValueError, match=r"argument 2 is (shorter|longer)"):
        Trainer(ours.experiment, ours.model, *given[:number])


def test_a_training_that_only_skips_updates_ends_with_a_sentence(monkeypatch):
    monkeypatch.setattr(trainer_module, "MOST_SKIPPED", 3)
    chosen = ring_experiment(updates=10, restart=0.0)
    trainer = Trainer(chosen, ring_filter(chosen), ring_data(chosen))
    weights = next(trainer.model.parameters())
    with torch.no_grad():
        weights.fill_(torch.nan)
    with pytest.raises(NothingLearnedError, match="3 updates in a row were skipped, their gradients above"):
        list(trainer.fit())
    assert trainer.update == trainer.skipped == 3
