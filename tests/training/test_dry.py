"""What a reader wrote and what does not fit is one sentence where a filter is built."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from small import Quick
from small_runs import tiny
from torch import nn

from assim_lib.analyses import RecurrentAnalysis, register_analysis
from assim_lib.mistakes import Mistake
from assim_lib.networks import register_network
from assim_lib.observations import ObservationModel, register_obs_conf
from assim_lib.training.build import build_filter

pytestmark = pytest.mark.usefixtures("own_cache", "readers_cell", "unchecked_shapes")


def everywhere(operator):
    return lambda channels, sites: ObservationModel(torch.ones(1, channels, sites, dtype=torch.bool), operator)


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda x, outputs: x[..., :1], r"what network = 'own' returns is a tensor of shape \(2, 2, 40, 1\) and torch"),
        (lambda x, outputs: x.new_full((*x.shape[:-1], outputs), torch.nan), "what network = 'own' returns holds NaN"),
        (
            lambda x, outputs: x.new_zeros(*x.shape[:-1], outputs).double(),
            ".*torch.float64; it must be .* torch.float32",
        ),
        (lambda x, outputs: x @ x, "network = 'own' fails on a first, small call: RuntimeError: "),
    ],
)
def test_a_network(made, sentence):
    @register_network("own")
    class Own(nn.Module):
        def __init__(self, inputs, outputs, sizes):
            super().__init__()
            self.outputs = outputs

        def forward(self, features, phase, generator=None):
            return made(features, self.outputs)

    with pytest.raises(Mistake, match=f"^{sentence}"):
        build_filter(tiny("recurrent", 2, network="own"))


def test_an_analysis():
    @register_analysis("own")
    class Own(RecurrentAnalysis):
        def forward(self, given, generator=None):
            return given.base

    with pytest.raises(Mistake, match=r"^analysis = 'own' returns a Tensor; it must return a Corrected\.$"):
        build_filter(tiny("own", 2))


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda *_: None, "obs_conf = 'own' returns a NoneType; it must return an ObservationModel"),
        (everywhere(torch.log), "the operator of obs_conf = 'own', of the climatology, holds NaN or infinity"),
        (everywhere(lambda x: x[..., :3]), r"the operator .* is a tensor of shape \(\d+, 1, 3\) and torch.float32; it"),
    ],
)
def test_a_configuration(made, sentence):
    register_obs_conf("own")(made)
    with pytest.raises(ValueError, match=f"^{sentence}"):
        build_filter(tiny("recurrent", 2, obs_conf="own"))


@pytest.mark.parametrize(
    ("tendency", "rest", "sentence"),
    [
        (
            lambda x: x * torch.nan,
            torch.zeros(1, 6).double(),
            "the tendency of system = 'own', of its rest .* holds NaN",
        ),
        (lambda x: x[..., :2], torch.zeros(1, 6).double(), r"the tendency .* is a tensor of shape \(2, 1, 2\)"),
        (lambda x: x.float(), torch.zeros(1, 6).double(), "the tendency .* torch.float32; it must be .* torch.float64"),
        (lambda x: x, [[0.0] * 6], r"rest\(\) of system = 'own' is a list; it must be a tensor of shape \(1, 6\)"),
        (lambda x: x, np.zeros((1, 6)), r"rest\(\) of system = 'own' is a ndarray"),
    ],
)
def test_a_system(tendency, rest, sentence):
    @dataclass(frozen=True)
    class Own(Quick):
        name = "own"

        def tendency(self, x):
            return tendency(x)

        def rest(self):
            return rest

    with pytest.raises(Mistake, match=f"^{sentence}"):
        Own(sites=6).on_attractor(2, torch.Generator())
