"""A search starts where it should, forgets nothing, and never looks at the test set."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from valley import CONTENDER, LOWEST, SETTING, START, Valley, point

from assim_lib.classical.contenders import Contender
from assim_lib.classical.search import (
    FINALISTS,
    Search,
    Trial,
    load_trials,
    mean_error,
    trial_table,
    trials_path,
    typical_error,
)
from assim_lib.evaluation import Scores
from assim_lib.storage import IntegrityError, OtherRunError


@pytest.fixture(scope="module")
def validation_set():
    return SETTING.load("validation")


@pytest.fixture
def search(tmp_path, monkeypatch, validation_set):
    """A search in a folder of its own, over a valley."""
    monkeypatch.setenv("ASSIM_DATA", str(tmp_path))
    return lambda run, contender=CONTENDER: Search(contender, validation_set, run=run)


def lost_on_long_runs(wrong):
    return lambda place, name, cycles: cycles > 1000 and wrong(place)


def test_a_search_goes_from_its_start_to_the_lowest_point(search):
    valley = Valley()
    best = search(valley).finalists()[0]
    assert valley.calls[0][0] == START.hyperparameters
    assert (best.hyperparameters, best.cycles) == (LOWEST, 2200)
    assert best.validation.rmse == pytest.approx(0.2)
    # Few trials, most of them on a part of the data, none of them on the test set, and none twice.
    assert len(valley.calls) < 25
    assert [cycles for *_, cycles in valley.calls].count(2200) == FINALISTS
    assert {name for _, name, _ in valley.calls} == {"l96-dt0.1-validation"}
    assert len({(*place.items(), cycles) for place, _, cycles in valley.calls}) == len(valley.calls)


def test_what_breaks_down_on_the_whole_data_makes_room_for_the_next(search):
    best = search(Valley(lost_on_long_runs(lambda place: place == LOWEST))).finalists()[0]
    assert best.hyperparameters != LOWEST
    assert not best.diverged
    assert any(trial.diverged and trial.hyperparameters == LOWEST for trial in load_trials(CONTENDER))


def test_finalists_that_lose_the_truth_make_room_for_others(search):
    finalists = search(Valley(lost_on_long_runs(lambda place: place["infl"] < 1.03))).finalists()
    assert len(finalists) > FINALISTS
    assert not finalists[0].diverged
    assert finalists[0].hyperparameters["infl"] >= 1.03


def test_excursions_decide_in_the_end_and_not_on_the_way(search):
    best = search(Valley(excursion=5.0)).finalists()[0]
    assert best.hyperparameters["infl"] != LOWEST["infl"]
    assert LOWEST in [trial.hyperparameters for trial in load_trials(CONTENDER) if trial.cycles == 2200]


def test_a_search_whose_start_or_neighbourhood_is_lost_finds_what_is_not(search):
    lost = Contender(SETTING, START.tuned(START.hyperparameters | {"infl": 1.0}))
    assert search(Valley(), lost).finalists()[0].hyperparameters == LOWEST
    trials_path(lost).unlink()
    # Only with much inflation and a short reach the filter keeps the truth: no single step leads there.
    best = search(Valley(lambda place, name, cycles: place["infl"] < 1.15 or place["loc_rad"] > 3)).finalists()[0]
    assert not best.diverged
    assert best.hyperparameters == point(1.15, 3)


def test_every_trial_is_stored_and_a_second_search_runs_nothing(search):
    valley = Valley(lambda place, name, cycles: place["infl"] < 1.03)
    first = search(valley).finalists()[0]
    stored, count = load_trials(CONTENDER), len(valley.calls)
    assert len(stored) == count
    assert search(valley).finalists()[0] == first
    assert len(valley.calls) == count
    diverged = [trial for trial in stored if trial.diverged]
    assert diverged
    assert all(trial.outcome == "stopped" and trial.hyperparameters["infl"] < 1.03 for trial in diverged)
    with pytest.raises(OtherRunError, match=r"holds trials of seed \d+, not 5; remove it to begin again\.$"):
        replace(search(valley), seed=5)
    table = trial_table([CONTENDER])
    assert len(table) == count
    assert table.rmse.isna().sum() == len(diverged)
    assert {"loc_rad", "infl", "rot", "cycles", "m"} <= set(table.columns)


def test_an_interrupted_search_goes_on_where_it_was(search):
    valley = Valley()

    def interrupted(*arguments, **options):
        if len(valley.calls) == 3:
            raise KeyboardInterrupt
        return valley(*arguments, **options)

    with pytest.raises(KeyboardInterrupt):
        search(interrupted).finalists()[0]
    assert len(load_trials(CONTENDER)) == 3
    assert search(valley).finalists()[0].hyperparameters == LOWEST
    assert len({(*place.items(), cycles) for place, _, cycles in valley.calls}) == len(valley.calls)


def trial(diverged, typical, mean=np.nan):
    scores = Scores(mean, mean, mean, mean, mean, 400)
    return Trial(
        hyperparameters=LOWEST, cycles=600, typical_rmse=typical, validation=scores, diverged=diverged, outcome="",
        ms_per_cycle=1.0, commit="c",
    )  # fmt: skip


def test_the_search_looks_at_the_median_and_the_last_choice_at_the_mean():
    good, bad = (trial(False, error, 1 - error) for error in (0.2, 0.3))
    near, far, without_an_analysis = (trial(True, error) for error in (0.1, 4.0, np.nan))
    ordered = [good, bad, near, far, without_an_analysis]
    assert sorted(reversed(ordered), key=typical_error) == ordered
    assert typical_error(without_an_analysis) == (True, float("inf"))
    assert mean_error(bad) < mean_error(good) < mean_error(near) == mean_error(far)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"cycles": "many"}, r"trials\.1\.cycles: Input should be a valid integer"),
        ({"settings": {}}, r"trials\.1\.settings: Extra inputs are not permitted"),
        ({"validation": {"rmse": 0.2}}, r"trials\.1\.validation\.rmse_lo: Field required"),
        (None, "content: Invalid JSON"),
    ],
)
def test_what_is_wrong_in_a_file_of_trials_is_named(search, wrong, sentence):
    search(Valley()).finalists()[0]
    path = trials_path(CONTENDER)
    stored = json.loads(path.read_text())
    if wrong:
        stored["trials"][1] |= wrong
    path.write_text(json.dumps(stored)[: None if wrong else 100])
    with pytest.raises(IntegrityError, match=rf"^{CONTENDER.name}\.json is no TrialFile: {sentence}"):
        load_trials(CONTENDER)
    shutil.rmtree(path.parent)
    assert load_trials(CONTENDER) == []
