"""How far a wrong model keeps analyses off the truth: learned from observations, and added to what is returned."""

import pytest
import torch
from small import generator
from small_runs import QUIET, tiny

from assim_lib.displacement import Displacement
from assim_lib.tracking import assimilate
from assim_lib.training.build import build_filter
from assim_lib.training.checkpoints import checkpoint_path, load_filter, save_checkpoint
from assim_lib.training.experiment import ParameterError
from assim_lib.training.run import train

pytestmark = pytest.mark.usefixtures("home", "unchecked_shapes")


def cycled(model, cycles=3):
    """Analyses and carries of some cycles from a cold start."""
    carry, seen = model.cold_start(4, generator=generator()), []
    for k in range(cycles):
        shape = (4, *carry.base.shape[-2:])
        carry, analysis = model.cycle(carry, torch.randn(shape, generator=generator(k)), k)
        seen.append((carry, analysis))
    return seen


def moved(model):
    """A filter with a displacement that is not zero."""
    torch.nn.init.ones_(model.displacement.trunk.head.bias)
    return model


def test_untrained_it_is_nothing_and_the_same_for_all_members():
    network = Displacement(2, 10, 3)
    forecast = torch.randn(4, 3, 2, 10, generator=generator())
    assert network(forecast).shape == (4, 1, 2, 10)
    assert (network(forecast) == 0).all()
    torch.nn.init.normal_(network.trunk.head.weight, generator=generator())
    assert network(forecast).std() > 0
    torch.testing.assert_close(network(forecast), network(forecast.mean(1, keepdim=True)))  # it sees their mean


def test_it_is_added_to_what_is_returned_and_to_nothing_that_is_forecast():
    plain, displaced = build_filter(tiny()), moved(build_filter(tiny(displacement=True)))
    for (ours, shifted), (theirs, analysis) in zip(cycled(displaced), cycled(plain), strict=True):
        torch.testing.assert_close(shifted, analysis + plain.analysis.std)  # one standard deviation
        for name, part in ours.tensors().items():
            torch.testing.assert_close(part, theirs.tensors()[name], rtol=0, atol=0)
    for (_, back), (_, analysis) in zip(cycled(displaced.undisplaced()), cycled(plain), strict=True):
        torch.testing.assert_close(back, analysis, rtol=0, atol=0)
    assert displaced.displacement is not None


def test_drawn_members_have_the_mean_of_the_displaced_analysis():
    model = moved(build_filter(tiny("extended", 1, displacement=True)))
    observations = torch.randn(5, 1, 40, generator=generator())
    drawn = assimilate(model, observations, generator(), draws=20)
    torch.testing.assert_close(drawn.mean(1), assimilate(model, observations, generator()).mean(1))


def test_a_published_filter_learns_it_afterwards_and_one_that_lacks_it_is_damaged(home):
    model, log = train(tiny(updates=2), **QUIET)
    name = tiny(updates=2).name
    save_checkpoint(model, checkpoint_path(name), log)
    further = tiny(updates=3, displacement=True, pretrained=name, adamw_lr=0.01)
    assert further.name.replace("-displacement", "") == f"{name}-further"
    assert further.label == f"{tiny().label}, displacement"
    tuned, log = train(further, **QUIET)
    assert any((part != 0).any() for part in tuned.displacement.trunk.head.parameters())
    save_checkpoint(tuned, checkpoint_path(further.name), log)
    _, loaded = load_filter(further.name)
    torch.testing.assert_close(loaded.displacement.trunk.head.weight, tuned.displacement.trunk.head.weight)
    save_checkpoint(model, checkpoint_path(further.name), log)  # without it
    with pytest.raises(ParameterError, match="are of another shape"):
        load_filter(further.name)
