"""An experiment says all about its filter."""

import pytest
import torch
from small import PARTIAL
from small_runs import NETWORK, assert_same, tiny

from assim_lib.analyses import ANALYSES, RecurrentAnalysis, register_analysis
from assim_lib.networks import FeedForwardTrunk, OriginalTrunk, RingConvTrunk, register_network
from assim_lib.observations import ObservationModel, register_obs_conf
from assim_lib.seeds import FROZEN
from assim_lib.systems import Lorenz96
from assim_lib.training.build import build_filter

pytestmark = pytest.mark.usefixtures("home")


@pytest.mark.parametrize(("analysis", "m"), [("original", 2), ("recurrent", 1), ("hybrid", 3)])
def test_the_same_experiment_has_the_same_filter(analysis, m):
    chosen = tiny(analysis, m, lag=2, step_size=0.15, noise=0.5, seed=4)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model = build_filter(chosen)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert_same(model.state_dict(), build_filter(chosen).state_dict())
    assert (model.steps, model.lag, model.analysis.lag, model.analysis.members) == (3, 2, 2, m)
    assert torch.equal(model.error, torch.full((1, 40), 0.5))
    assert model.analysis.mean.shape == model.analysis.std.shape == (1, 1)
    assert float(model.analysis.mean) == pytest.approx(2.34, abs=0.3)
    assert float(model.analysis.std) == pytest.approx(3.64, abs=0.3)
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())
    other = build_filter(chosen.changed(seed=5), model.climatology).analysis.trunk.embed.linear.weight
    assert not torch.equal(other, model.analysis.trunk.embed.linear.weight)


@pytest.mark.parametrize(
    ("analysis", "network", "own"),
    [
        ("original", "original", {"inflation": 1.15, "band": 3, "tendency": False}),
        ("gated", "ff_per_operator", {"inflation": 1.15, "band": 3, "other_member": False}),
        ("recurrent", "ff", {"inflation": 1.15}),
        ("hybrid", "conv", {"inflation": 1.15, "band": 3, "taper_length": 2.5, "drift": -0.5, "lag": 3}),
        ("covariant", "conv", {"inflation": 1.15, "taper_length": 2.5}),
        ("extended", "conv", {"inflation": 1.15, "taper_length": 2.5, "m": 1}),
    ],
)
def test_every_option_of_an_experiment_reaches_its_filter(analysis, network, own):
    options = {"network": network, "dt": 0.025, "clamp": 3.5, "blocks": 2, "hidden_size": 7, "dropout": 0.2, **own}
    model = build_filter(tiny(analysis, obs_conf=PARTIAL, **{"test_dropout": False, **options}))
    assert model.dynamics == Lorenz96(dt=0.025)
    assert (model.steps, model.analysis.memory, model.lag_warmup) == (4, 3, 10 if analysis == "extended" else 0)
    torch.testing.assert_close(model.highest, model.analysis.mean + 3.5 * model.analysis.std)
    torch.testing.assert_close(model.lowest, model.analysis.mean - 3.5 * model.analysis.std)
    trunk = model.analysis.trunk
    if network == "ff_per_operator":
        assert len(trunk.trunks) == 4
        trunk = trunk.trunks[0]
    kinds = {"conv": RingConvTrunk, "original": OriginalTrunk}
    assert type(trunk) is kinds.get(network, FeedForwardTrunk)
    assert trunk.dropout == 0.2
    assert len(trunk.layers if network == "original" else trunk.blocks) == 2
    for name, value in own.items():
        if name in ("taper_length", "inflation") and ANALYSES[analysis].needs_operator:
            assert float(getattr(model.analysis, f"log_{name}").detach().exp()) == pytest.approx(value)
        elif name in ANALYSES[analysis].uses:
            assert getattr(model.analysis, name) == value


def test_an_original_filter_has_as_many_mask_features_as_say_something(readers_cell):
    @register_obs_conf("momentum_only")
    def momentum_only(channels, sites):
        schedule = torch.zeros(1, channels, sites, dtype=torch.bool)
        schedule[:, 0] = True
        return ObservationModel(schedule)

    def features(**options):
        return build_filter(tiny("original", **options), torch.randn(20, *shape)).analysis.mask_features

    shape = (1, 40)
    assert [features(obs_conf=conf) for conf in ("full_obs", PARTIAL)] == [0, 1]
    shape = (2, 36)
    vl20 = {"experiment": "vl20"}
    assert [features(**vl20, obs_conf=conf) for conf in ("full_obs", PARTIAL, "momentum_only")] == [0, 1, 2]


def test_an_untrained_filter_has_the_units_of_the_climatology_that_it_is_given():
    states = 5 + 2 * torch.randn(200, 1, 40)
    model = build_filter(tiny(), states)
    assert torch.equal(model.climatology, states)
    assert float(model.analysis.mean) == pytest.approx(5, abs=0.1)
    assert float(model.analysis.std) == pytest.approx(2, abs=0.1)


def test_parts_that_a_reader_registers_are_built_by_their_names(readers_cell):
    @register_network("shallow")
    class Shallow(RingConvTrunk):
        def __init__(self, inputs, outputs, sizes):
            super().__init__(inputs, outputs, sizes._replace(blocks=1))

    @register_analysis("own")
    class Own(RecurrentAnalysis):
        uses = ("inflation", "band")
        defaults = {"network": "shallow", "blocks": 3}

        def __init__(self, *args, band, **kwargs):
            super().__init__(*args, **kwargs)
            self.reach = band

    chosen = tiny("own", 2, band=4, inflation=1.2, **{**NETWORK, "blocks": 3})
    model = build_filter(chosen)
    assert type(model.analysis) is Own
    assert (model.analysis.reach, model.analysis.inflation) == (4, 1.2)
    assert type(model.analysis.trunk) is Shallow
    assert len(model.analysis.trunk.blocks) == 1


@pytest.mark.parametrize("seed", FROZEN.values(), ids=FROZEN)
def test_no_filter_starts_from_the_frozen_truth(seed):
    start = Lorenz96().on_attractor(1, torch.Generator().manual_seed(seed)).float()[0]
    model = build_filter(tiny(seed=seed))
    assert (model.climatology - start).square().mean((-2, -1)).sqrt().min() > 0.1
