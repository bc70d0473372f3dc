"""A cycle as one compiled program is the same cycle."""

import warnings
from functools import partial

import pytest
import torch
from small import PARTIAL, SITES, generator, record, shaken, small_filter

from assim_lib.compiled import can_compile
from assim_lib.tracking import assimilate


@pytest.fixture
def traced(monkeypatch):
    """Traced as ever, but not turned into C++, which takes most of a minute."""
    can_compile.cache_clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    yield
    torch._dynamo.reset()
    can_compile.cache_clear()


@pytest.mark.usefixtures("unchecked_shapes", "traced")
@pytest.mark.parametrize(
    ("name", "members", "options"),
    [
        ("original", 4, {}),
        ("recurrent", 1, {}),
        ("recurrent", 1, {"sees_gradient": True, "sees_window": True}),
        ("covariant", 4, {}),
        ("extended", 1, {}),
    ],
)
@pytest.mark.filterwarnings("error:Not compiled")
def test_a_compiled_filter_assimilates_the_same(name, members, options):
    model = shaken(small_filter(name, members, lag=1, obs_conf=PARTIAL, **options), 0.05)
    observations = record(model, cycles=5)
    plain, compiled = (assimilate(model, observations, generator(), compiled=chosen) for chosen in (False, True))
    torch.testing.assert_close(compiled, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("unchecked_shapes", "traced")
def test_cycles_in_which_the_lag_grows_are_not_compiled():
    model = small_filter("recurrent", 1, lag=2)
    model.lag_warmup = 2
    compiled, observations = model.compiled(whole=True), record(model, cycles=7)
    asked = []
    one = compiled._compiled
    compiled._compiled = lambda *arguments: asked.append(arguments[2:4]) or one(*arguments)
    torch.testing.assert_close(
        assimilate(compiled, observations, generator()), assimilate(model, observations, generator())
    )
    assert asked == [(2, False)] * 3
    assert model._compiled is compiled.with_members(4)._compiled is None


@pytest.mark.usefixtures("unchecked_shapes", "traced")
def test_what_cannot_be_one_program_runs_as_it_is_and_a_sentence_says_so():
    model = small_filter("gated", 4, dropout=0.5)
    observation, compiled = record(model, cycles=1)[0], model.compiled(whole=True)
    carry = model.cold_start(generator=generator())
    plain = model.cycle(carry, observation, 0, generator(1))[1]
    with pytest.warns(UserWarning, match="^Not compiled, slower: "):
        analysis = compiled.cycle(carry, observation, 0, generator(1))[1]
    torch.testing.assert_close(analysis, plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        compiled.cycle(carry, observation, 0, generator(1))


@pytest.mark.usefixtures("unchecked_shapes", "traced")
def test_a_mistake_in_a_compiled_cycle_is_still_a_mistake(monkeypatch):
    def mistaken(self, given, generator=None):
        raise ValueError("a mistake of the analysis")

    model = small_filter()
    monkeypatch.setattr(type(model.analysis), "forward", mistaken)
    carry = model.cold_start(generator=generator())
    observation = torch.zeros(1, SITES, dtype=torch.float64)
    with pytest.warns(UserWarning, match="Not compiled"), pytest.raises(ValueError, match="a mistake of the analysis"):
        model.compiled(whole=True).cycle(carry, observation, 0)
