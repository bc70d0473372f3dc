"""A search starts where it should, forgets nothing, and never looks at the test set."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from assim_lib import comparison, results, tuning
from assim_lib.baselines import Baseline, BaselineRun
from assim_lib.comparison import compare, compare_all, stored_baseline
from assim_lib.trajectories import load_test_set
from assim_lib.tuning import (
    GRID,
    SETTINGS,
    Contender,
    Search,
    choose,
    contenders,
    load_trials,
    mean_error,
    trial_table,
    typical_error,
)

SETTING = ("l96", "full_obs", 0.1, 1.0)
START = Baseline(method="LETKF", m=10, settings={"loc_rad": 4, "infl": 1.04, "rot": False})
CONTENDER = Contender(SETTING, START)
LOWEST = {"loc_rad": 7, "infl": 1.02, "rot": True}


class Valley:
    """Stands in for DAPPER: an error that falls toward :data:`LOWEST`, and a filter that is lost with little inflation.

    calls : what was run, as (settings, data, cycles).
    breaks_late : settings that are lost on long runs only.
    excursion : an error that some settings have now and then.
    lost_on_test : settings that are lost on the test set only.
    """

    def __init__(self):
        self.calls, self.breaks_late, self.excursion, self.lost_on_test = [], None, 0.0, []

    def __call__(self, baseline, data, cycles=None, seed=0, progress=False):
        settings, cycles = baseline.settings, cycles or len(data.observations)
        self.calls.append((settings, data.name, cycles))
        away = sum(
            abs(values.index(settings[name]) - values.index(LOWEST[name])) for name, values in GRID["LETKF"].items()
        )
        lost = settings["infl"] < 1.01 or (cycles > 1000 and settings == self.breaks_late)
        lost |= data.name.endswith("test") and settings in self.lost_on_test
        series = np.full(cycles, 0.2 + 0.01 * away)
        survived = 300 if lost else cycles
        series[:survived] += 3 * lost
        series[survived:] = np.nan
        series[10::70] += self.excursion * (settings["infl"] == 1.02)
        outcome = "stopped" if lost else "completed"
        return BaselineRun(baseline, data.truth[1 : cycles + 1], series, series, series, 1.0, lost, survived, outcome)


@pytest.fixture
def valley(tmp_path, monkeypatch):
    valley = Valley()
    monkeypatch.setattr(tuning, "data_dir", lambda: tmp_path)
    for module in (results, comparison):
        monkeypatch.setattr(module, "results_dir", lambda: tmp_path)
    for module in (tuning, comparison):
        monkeypatch.setattr(module, "run_baseline", valley)
    return valley


def search():
    return Search(CONTENDER, CONTENDER.data("validation"))


def test_a_search_goes_from_its_start_to_the_lowest_point(valley):
    best = search().best()
    assert valley.calls[0][0] == START.settings
    assert best["settings"] == LOWEST
    assert best["cycles"] == 2200
    assert best["validation"]["rmse"] == pytest.approx(0.2)
    # Few trials, most of them on a part of the data, none of them on the test set, and none twice.
    assert len(valley.calls) < 25
    assert [cycles for *_, cycles in valley.calls].count(2200) == tuning.FINALISTS
    assert {name for _, name, _ in valley.calls} == {"l96-dt0.1-validation"}
    assert len({(*s.items(), c) for s, _, c in valley.calls}) == len(valley.calls)


def test_what_breaks_down_on_the_whole_data_makes_room_for_the_next(valley):
    valley.breaks_late = LOWEST
    best = search().best()
    assert best["settings"] != LOWEST
    assert not best["diverged"]
    assert any(t["diverged"] and t["settings"] == LOWEST for t in load_trials(CONTENDER))


def test_excursions_decide_in_the_end_and_not_on_the_way(valley):
    valley.excursion = 5.0
    best = search().best()
    assert best["settings"]["infl"] != LOWEST["infl"]
    assert LOWEST in [trial["settings"] for trial in load_trials(CONTENDER) if trial["cycles"] == 2200]


def test_a_search_from_a_diverged_start_climbs_out(valley, monkeypatch):
    lost = Contender(SETTING, START.model_copy(update={"settings": START.settings | {"infl": 1.0}}))
    assert Search(lost, lost.data("validation")).best()["settings"] == LOWEST


def test_a_search_whose_neighbourhood_is_lost_finds_what_is_not(valley, monkeypatch):
    """Only with much inflation and a short reach the filter keeps the truth: no single step leads there."""

    def lost_without(baseline, data, cycles=None, seed=0, progress=False):
        run = valley(baseline, data, cycles, seed, progress)
        if baseline.settings["infl"] >= 1.15 and baseline.settings["loc_rad"] <= 3:
            return run
        return replace(run, diverged=True, survived=100, outcome="stopped")

    monkeypatch.setattr(tuning, "run_baseline", lost_without)
    best = search().best()
    assert not best["diverged"]
    assert best["settings"] == {"infl": 1.15, "loc_rad": 3, "rot": True}


def test_finalists_that_lose_the_truth_make_room_for_others(valley, monkeypatch):
    def lost_late(baseline, data, cycles=None, seed=0, progress=False):
        run = valley(baseline, data, cycles, seed, progress)
        lost = len(run.rmse) > 1000 and baseline.settings["infl"] < 1.03
        return replace(run, diverged=True, outcome="stopped") if lost else run

    monkeypatch.setattr(tuning, "run_baseline", lost_late)
    finalists = search().finalists()
    assert len(finalists) > tuning.FINALISTS
    assert not finalists[0]["diverged"]
    assert finalists[0]["settings"]["infl"] >= 1.03


def test_every_trial_is_stored_and_a_second_search_runs_nothing(valley):
    first = search().best()
    stored = load_trials(CONTENDER)
    assert len(stored) == len(valley.calls)
    count = len(valley.calls)
    assert search().best() == first
    assert len(valley.calls) == count
    diverged = [trial for trial in stored if trial["diverged"]]
    assert all(trial["outcome"] == "stopped" and trial["settings"]["infl"] < 1.01 for trial in diverged)
    table = trial_table([CONTENDER])
    assert len(table) == count
    assert table.rmse.isna().sum() == len(diverged)
    assert {"loc_rad", "infl", "rot", "cycles", "m"} <= set(table.columns)


def test_an_interrupted_search_goes_on_where_it_was(valley, monkeypatch):
    def interrupted(*arguments, **options):
        if len(valley.calls) == 3:
            raise KeyboardInterrupt
        return valley(*arguments, **options)

    monkeypatch.setattr(tuning, "run_baseline", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search().best()
    assert len(load_trials(CONTENDER)) == 3
    monkeypatch.setattr(tuning, "run_baseline", valley)
    assert search().best()["settings"] == LOWEST
    assert len({(*s.items(), c) for s, _, c in valley.calls}) == len(valley.calls)


def test_the_search_looks_at_the_median_and_the_last_choice_at_the_mean():
    good, bad = ({"diverged": False, "typical_rmse": r, "validation": {"rmse": 1 - r}} for r in (0.2, 0.3))
    near, far = ({"diverged": True, "typical_rmse": r, "validation": {"rmse": None}} for r in (0.1, 4.0))
    assert typical_error(good) < typical_error(bad) < typical_error(near) < typical_error(far)
    assert mean_error(bad) < mean_error(good) < mean_error(near) == mean_error(far)


def test_a_comparison_is_stored_and_repeated_only_when_asked(valley):
    path = compare(CONTENDER, progress=False)
    stored = json.loads(path.read_text())
    assert stored["baseline"]["settings"] == LOWEST
    assert stored["test"]["cycles"] == 5000
    assert stored["validation"]["rmse"] == pytest.approx(0.2)
    assert (stored["diverged"], stored["diverged_starts"], stored["starts"]) == (False, 0, comparison.STARTS)
    on_test = [(c, s) for s, name, c in valley.calls if name == "l96-dt0.1-test"]
    assert [cycles for cycles, _ in on_test] == [5200] + [comparison.START_CYCLES] * comparison.STARTS
    assert all(settings == LOWEST for _, settings in on_test)
    count = len(valley.calls)
    compare(CONTENDER, progress=False)
    assert len(valley.calls) == count
    compare(CONTENDER, again=True, progress=False)
    assert len(valley.calls) == count + 1 + comparison.STARTS


def test_what_is_lost_on_the_test_set_makes_room_for_the_next_finalist(valley):
    finalists = [trial["settings"] for trial in search().finalists()]
    assert len(finalists) == tuning.FINALISTS
    valley.lost_on_test = finalists[:2]
    for _ in range(2):  # once made, it is not made again
        stored = json.loads(compare(CONTENDER, progress=False).read_text())
        assert not stored["diverged"]
        assert stored["baseline"]["settings"] == finalists[2]
        assert [failure["settings"] for failure in stored["failed"]] == finalists[:2]
        assert [s for s, name, c in valley.calls if name == "l96-dt0.1-test" and c == 5200] == finalists[:3]
    valley.lost_on_test = finalists
    stored = json.loads(compare(CONTENDER, again=True, progress=False).read_text())
    assert stored["diverged"]
    assert stored["test"]["rmse"] is None
    assert len(stored["failed"]) == tuning.FINALISTS
    count = len(valley.calls)
    compare(CONTENDER, progress=False)
    assert len(valley.calls) == count


def test_the_stored_settings_are_found_again(valley):
    compare(CONTENDER, progress=False)
    data = load_test_set(*SETTING)
    assert stored_baseline(data, "LETKF", 10).settings == LOWEST
    with pytest.raises(LookupError, match=r"^LETKF with m = 20 has no score on l96-dt0.1-test with full_obs"):
        stored_baseline(data, "LETKF", 20)
    unknown = replace(data, obs_conf="unstructured_known_part")
    with pytest.raises(LookupError, match=r"has no score on l96-dt0\.1-test with unstructured_known_part"):
        stored_baseline(unknown, "LETKF", 10)


def test_starts_are_apart_and_are_parts_of_the_test_set(monkeypatch):
    seen = []

    def look(baseline, data, seed, progress):
        seen.append((data, seed))
        series = np.ones(len(data.observations))
        return BaselineRun(baseline, data.truth[1:], series, series, series, 1.0, len(seen) % 2 == 0, 1, "")

    monkeypatch.setattr(comparison, "run_baseline", look)
    whole = load_test_set(*SETTING)
    assert comparison._diverged_starts(START, whole) == 2
    assert len({seed for _, seed in seen}) == len(seen) == 5
    for index, (part, _) in enumerate(seen):
        assert part.states is whole.truth
        first = index * 1040
        np.testing.assert_array_equal(part.observations, whole.observations[first : first + 400])
        np.testing.assert_array_equal(part.truth, whole.truth[first : first + 401])
        np.testing.assert_array_equal(part.masks, whole.masks[first : first + 400])


def test_many_comparisons_yield_all_their_results(valley):
    other = Contender(SETTING, START.model_copy(update={"m": 20}))
    assert [path.stem for path in compare_all([CONTENDER, other])] == [CONTENDER.name, other.name]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_every_setting_has_its_contenders_and_a_frozen_set(setting):
    assert load_test_set(*setting).frozen
    assert load_test_set(*setting, split="validation").frozen
    chosen = contenders(setting)
    assert len({contender.name for contender in chosen}) == len(chosen)
    sizes = {method: [c.start.m for c in chosen if c.start.method == method] for method in GRID}
    assert sizes["LETKF"] == [5, 10, 20, 30]
    assert set(sizes["iEnKS"]) == {5, 10, 20, 30, 100}
    assert all(sizes[method] for method in GRID)
    for contender in chosen:
        # A search can start only on its grid, and DAPPER must be told nothing that is not there.
        for name, values in contender.grid.items():
            assert contender.start.settings[name] in values
        assert (contender.role == "reference") == (contender.start.m > 30)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_every_cell_of_the_table_is_filled_and_its_search_is_at_an_end(setting, monkeypatch):
    """To repeat the stored searches is to read them: there is no trial and no score that the command would still make."""
    validation_set = load_test_set(*setting, split="validation")
    monkeypatch.setattr(tuning, "run_baseline", lambda baseline, *_: pytest.fail(f"{baseline} was never tried"))
    for contender in contenders(setting):
        wanted = [trial["settings"] for trial in Search(contender, validation_set).finalists()]
        assert comparison._is_stored(results.results_dir() / f"{contender.name}.json", wanted), contender.name


def test_contenders_are_chosen_by_setting_method_and_size():
    assert len(choose()) == sum(len(contenders(setting)) for setting in SETTINGS)
    chosen = choose(system=["ks"], noise=[1.0], method=["LETKF", "4D-Var"], m=[10, 1])
    assert {contender.setting[0] for contender in chosen} == {"ks"}
    assert {contender.start.label for contender in chosen} == {"LETKF N=10", "4D-Var"}
    with pytest.raises(ValueError, match=r"^m = 7 has no classical methods; take one of \[5, 10, 20, 30\]\.$"):
        choose(method=["LETKF"], m=[7])


def test_the_command_says_what_is_wrong():
    command = [sys.executable, "-m", "assim_lib", "baselines", "--method", "LETFK"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("assim_lib baselines: method = LETFK has no classical methods; take one of ['3D-Var'")


def test_a_trial_without_an_analysis_is_worse_than_all():
    trials = [{"diverged": True, "typical_rmse": error} for error in (None, float("nan"), 3.0)]
    assert min(trials, key=typical_error)["typical_rmse"] == 3.0
    assert typical_error(trials[0]) == typical_error(trials[1]) == (True, float("inf"))
