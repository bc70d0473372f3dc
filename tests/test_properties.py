"""Inputs that nobody thought of: wrong ones end in a sentence that names the field, valid ones run."""

from typing import get_args

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as some
from small import climatology, generator

from assim_lib.networks import NETWORKS
from assim_lib.observations import OBS_CONFS
from assim_lib.own.conventions import RecordError
from assim_lib.own.record import read_record
from assim_lib.study.notebook import notebook_parameters
from assim_lib.systems import Dynamics
from assim_lib.tracking import assimilate
from assim_lib.training.build import build_filter
from assim_lib.training.experiment import Experiment, ParameterError, configure, options

pytestmark = pytest.mark.usefixtures("unchecked_shapes")
# The same inputs each time, and no time limit: a loaded machine is no fault.
QUIET = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}

SENSELESS = some.one_of(
    some.just(float("nan")),
    some.just(float("inf")),
    some.just(-float("inf")),
    some.integers(max_value=-1),
    some.floats(max_value=-1e-9),
    some.binary(max_size=4),
    some.complex_numbers(),
    some.lists(some.integers(), max_size=3),
    some.dictionaries(some.text(max_size=3), some.integers(), max_size=2),
    some.tuples(some.booleans()),
)
ANY_NUMBER = ("drift",)  # of which a negative one means something
SHAPES = some.lists(some.integers(0, 5), max_size=4).map(tuple)


@pytest.fixture
def no_computing(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("something was computed")

    monkeypatch.setattr(Dynamics, "flow", refuse)
    monkeypatch.setattr(Dynamics, "on_attractor", refuse)


def one_sentence(error, field):
    said = str(error.value)
    assert field in said
    assert "\n" not in said


@settings(max_examples=600, **QUIET)
@given(name=some.sampled_from(options()), value=SENSELESS)
def test_a_senseless_option_is_named(no_computing, name, value):
    number = isinstance(value, int | float) and value == value and abs(value) != float("inf")
    assume(not (name in ANY_NUMBER and number))
    assume((name, value) != ("own", {}))  # no options of its own
    with pytest.raises(ParameterError) as error:
        configure("l96_conv", **{name: value})
    one_sentence(error, name)


@settings(max_examples=200, **QUIET)
@given(name=some.from_regex(r"[a-z][a-z_0-9]{0,12}", fullmatch=True), value=some.one_of(some.integers(), some.text()))
def test_a_parameter_that_a_notebook_does_not_have_is_named(no_computing, name, value):
    declared = {"seed": int, "updates": int}
    assume(name not in (*declared, "exit", "quit", "open"))
    namespace = {"__annotations__": declared, "seed": 0, "updates": 3, name: value}
    with pytest.raises(ParameterError) as error:
        notebook_parameters(namespace, "l96_conv")
    one_sentence(error, f"`{name}`")


@settings(max_examples=300, **QUIET)
@given(
    shape=SHAPES, kind=some.sampled_from(["float32", "float64", "int64", "bool", "complex64", "U3", "datetime64[s]"])
)
def test_a_record_of_another_form_is_described(no_computing, shape, kind):
    good = len(shape) in (2, 3) and shape[-1] == 4 and (len(shape) == 2 or shape[1] == 1) and shape[0] > 0
    assume(not good or kind not in ("float32", "float64", "int64"))
    with pytest.raises(RecordError) as error:
        read_record(torch.zeros(shape).numpy().astype(kind), (1, 4), 0.1)
    one_sentence(error, "")
    assert any(said in str(error.value) for said in (str(shape), "of type", "has no times"))


# The options that are numbers, and of which kind; some may be None as well.
NUMBERS = {
    name: kind
    for name, field in Experiment.model_fields.items()
    for kind in (int, float)
    if kind in (field.annotation, *get_args(field.annotation))
}


@settings(max_examples=300, **QUIET)
@given(name=some.sampled_from(sorted(NUMBERS)), value=some.integers(10**13, 10**30))
def test_a_number_that_is_far_too_large_is_named(no_computing, name, value):
    kind = NUMBERS[name]
    with pytest.raises(ParameterError) as error:
        configure("l96_conv", **{name: kind(value)})
    one_sentence(error, name)


VALID = some.fixed_dictionaries(
    {
        "analysis": some.sampled_from(["original", "gated", "recurrent", "hybrid", "covariant", "extended"]),
        "network": some.sampled_from(sorted(NETWORKS)),
        "sees_gradient": some.booleans(),
        "m": some.integers(1, 5),
        "lag": some.integers(0, 2),
        "obs_conf": some.sampled_from([name for name in OBS_CONFS if "unstructured" not in name]),
        "noise": some.floats(0.01, 10),
        "step_size": some.sampled_from([0.05, 0.1, 0.15]),
        "hidden_size": some.integers(1, 6),
        "blocks": some.integers(0, 2),
        "kernel": some.sampled_from([1, 3, 5]),
        "memory": some.integers(1, 3),
        "clamp": some.floats(3, 4),  # farther out a model may leave all numbers within one cycle
        "seed": some.integers(0, 2**32 - 1),
    }
)


@settings(max_examples=200, **QUIET)
@given(chosen=VALID)
def test_what_is_allowed_runs(chosen):
    try:
        experiment = configure("l96_conv", **chosen)
    except ParameterError:
        assume(False)
    model = build_filter(experiment, climatology(40).float())
    # No truth is behind these observations: no matter what comes, states stay numbers.
    observations = 3 * torch.randn((5, 1, 40), generator=generator())
    with torch.no_grad():
        assert assimilate(model, observations, generator()).isfinite().all()
