"""No two purposes draw the same numbers, and each draws the same ones everywhere."""

import numpy as np
import pytest
import torch
from small import Quick

from assim_lib.seeds import BASELINES, FROZEN, SEARCH, SHORT_RUNS, STRESS, Purpose, generator_for, seed_for
from assim_lib.training.data import training_data
from assim_lib.training.experiment import configure
from assim_lib.trajectories import simulate

NUMBERS = [(), (0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (2**31,), (2**40,), (2**40 + 1,)]
PLAIN = [*FROZEN.values(), SEARCH, BASELINES, STRESS, SHORT_RUNS]


def test_every_purpose_has_seeds_of_its_own():
    seeds = [seed_for(purpose, *numbers) for purpose in Purpose for numbers in NUMBERS]
    assert all(0 <= seed < 2**63 for seed in seeds)
    # What PyTorch's CPU generator uses of them.
    used = [seed % 2**32 for seed in seeds]
    assert len({*used, *PLAIN}) == len(used) + len(PLAIN)
    # Neighbours of what was drawn before from plain numbers are far away: runs count on from them.
    assert min(used) > 10**6


def test_seeds_that_differ_draw_numbers_that_differ():
    generators = [generator_for(purpose, *numbers) for purpose in Purpose for numbers in NUMBERS]
    generators += [torch.Generator().manual_seed(seed) for seed in PLAIN]
    drawn = torch.stack([torch.randn(500, generator=source, dtype=torch.float64) for source in generators])
    assert (torch.corrcoef(drawn) - torch.eye(len(drawn))).abs().max() < 0.25
    again = generator_for(Purpose.TRAINING, 3), generator_for(Purpose.TRAINING, 3)
    assert torch.equal(*(torch.randn(5, generator=source) for source in again))


def test_a_seed_is_the_same_on_every_machine():
    assert seed_for(Purpose.TRAINING_TRUTH, 0) == 2553429759821638025
    assert seed_for(Purpose.WEIGHTS, 5) == 9128356693901897955


@pytest.mark.usefixtures("home")
def test_training_never_sees_the_errors_of_a_scored_set():
    chosen = configure("l96_conv", segments=1, cycles=30, window=3)
    data = training_data(chosen.changed(loss="clean_analysis"))
    errors = (data.observations - data.truth)[0].numpy().ravel()
    for seed in FROZEN.values():
        scored = simulate(Quick(), 0.1, 30, 1, seed)
        assert abs(np.corrcoef(errors, scored.unit_noise.values.ravel())[0, 1]) < 0.15
        assert np.abs(scored.truth.values[0, 1:] - data.truth[0].numpy()).max() > 1


def test_negative_numbers_are_refused():
    with pytest.raises(ValueError, match="non-negative"):
        seed_for(Purpose.TRAINING, -1)
