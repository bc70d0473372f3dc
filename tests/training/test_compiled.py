"""A compiled filter is the same filter, sooner."""

from functools import partial

import pytest
import torch
from small_runs import advance, ring_data, ring_experiment, ring_filter
from torch import nn

from assim_lib.compiled import can_compile
from assim_lib.networks import register_network
from assim_lib.training.trainer import Trainer


@pytest.fixture
def asked_anew():
    """What this machine can compile is found out once."""
    can_compile.cache_clear()
    yield
    can_compile.cache_clear()


def trained(compiled: bool, **options):
    chosen = ring_experiment("recurrent", m=1, lr=1e-3, adamw_lr=1e-3, **options)
    model = ring_filter(chosen)
    metrics = advance(Trainer(chosen, model, ring_data(chosen), compiled=compiled), 3)
    return [m["loss"] for m in metrics], [p.detach() for p in model.parameters()]


@pytest.mark.usefixtures("unchecked_shapes", "asked_anew")
@pytest.mark.filterwarnings("error:Not compiled")
@pytest.mark.parametrize("options", [{}, {"lag": 2, "first_lag": 1, "sees_gradient": True, "sees_window": True}])
def test_updates_of_a_compiled_filter_are_the_same_but_for_rounding(monkeypatch, options):
    # Traced as ever, but not turned into C++, which takes most of a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    losses, weights = trained(compiled=True, **options)
    plain_losses, plain_weights = trained(compiled=False, **options)
    torch._dynamo.reset()
    assert losses == pytest.approx(plain_losses, rel=1e-4)
    for ours, plain in zip(weights, plain_weights, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize("sees_gradient", [True, False])
def test_a_cycle_that_differentiates_its_model_is_compiled_as_a_whole(monkeypatch, sees_gradient):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    chosen = ring_experiment("recurrent", m=1, lag=1, sees_gradient=sees_gradient)
    (pool,) = Trainer(chosen, ring_filter(chosen), ring_data(chosen), compiled=True).pools
    assert (pool.unrolled._compiled is not None) is sees_gradient


@pytest.mark.usefixtures("asked_anew")
def test_without_a_compiler_the_filter_is_as_it_was_and_a_sentence_says_why(monkeypatch):
    def broken(_function):
        raise RuntimeError("no C++ compiler\nand a long trace")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match="^Not compiled, slower: no C\\+\\+ compiler$"):
        losses, _ = trained(compiled=True)
    assert losses == trained(compiled=False)[0]


@pytest.mark.usefixtures("asked_anew", "readers_cell")
def test_a_network_of_a_readers_own_can_be_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)

    class Own(nn.Module):
        def __init__(self, inputs, outputs, sizes):
            super().__init__()
            self.linear = nn.Linear(inputs, outputs)

        def forward(self, features, phase=None, generator=None):
            return self.linear(features)

    register_network("own")(Own)
    assert ring_filter(ring_experiment(network="own")).compiled().analysis.trunk.linear.weight.shape[0] > 0
