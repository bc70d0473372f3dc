"""Classical methods are tuned, scored once, and stored; what is stored is found again."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
from small import ROOT
from valley import CONTENDER, LOWEST, SETTING, START, Valley

from assim_lib.classical.contenders import SETTINGS, Contender, contenders
from assim_lib.classical.methods import BaselineRun
from assim_lib.classical.search import FINALISTS, Search, load_trials, trials_path
from assim_lib.setting import Setting
from assim_lib.storage import data_dir
from assim_lib.study import benchmark
from assim_lib.study.benchmark import compare, compare_all, stored_baseline
from assim_lib.study.results import read_result, results_dir

TEST, VALIDATION = "l96-dt0.1-test", "l96-dt0.1-validation"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Results and trials of their own, on the frozen truths."""
    (tmp_path / "test_sets").symlink_to(data_dir() / "test_sets")
    monkeypatch.setenv("ASSIM_DATA", str(tmp_path))


def run_on_test_set(valley):
    return [(cycles, place) for place, name, cycles in valley.calls if name == TEST]


def test_a_comparison_is_stored_and_repeated_only_when_asked():
    valley = Valley()
    stored = read_result(compare(CONTENDER, progress=False, run=valley))
    assert stored.baseline == START.tuned(LOWEST)
    assert stored.setting == SETTING
    assert stored.test.cycles == 5000
    assert stored.validation.rmse == pytest.approx(0.2)
    assert (stored.diverged, stored.diverged_starts, stored.starts) == (False, 0, benchmark.STARTS)
    once = [(5200, LOWEST)] + [(benchmark.START_CYCLES, LOWEST)] * benchmark.STARTS
    assert run_on_test_set(valley) == once
    compare(CONTENDER, progress=False, run=valley)
    assert run_on_test_set(valley) == once
    compare(CONTENDER, again=True, progress=False, run=valley)
    assert run_on_test_set(valley) == 2 * once


def test_what_is_lost_on_the_test_set_makes_room_for_the_next_finalist():
    found = Search(CONTENDER, SETTING.load("validation"), run=Valley()).finalists()
    finalists = [trial.hyperparameters for trial in found]
    assert len(finalists) == FINALISTS
    valley = Valley(lambda place, name, cycles: name == TEST and place in finalists[:2])
    for _ in range(2):  # once made, it is not made again
        stored = read_result(compare(CONTENDER, progress=False, run=valley))
        assert not stored.diverged
        assert stored.baseline.hyperparameters == finalists[2]
        assert [failure.hyperparameters for failure in stored.failed] == finalists[:2]
        assert [place for cycles, place in run_on_test_set(valley) if cycles == 5200] == finalists[:3]
    valley = Valley(lambda place, name, cycles: name == TEST)
    stored = read_result(compare(CONTENDER, again=True, progress=False, run=valley))
    assert stored.diverged
    assert np.isnan(stored.test.rmse)
    assert len(stored.failed) == FINALISTS
    count = len(valley.calls)
    compare(CONTENDER, progress=False, run=valley)
    assert len(valley.calls) == count


def test_the_stored_hyperparameters_are_found_again():
    compare(CONTENDER, progress=False, run=Valley())
    twin = SETTING.load()
    assert stored_baseline(twin, "LETKF", 10).hyperparameters == LOWEST
    with pytest.raises(LookupError, match=r"^LETKF with m = 20 has no score on l96-dt0.1-test with full_obs"):
        stored_baseline(twin, "LETKF", 20)
    unknown = replace(twin, setting=Setting("l96", "unstructured_known_part"))
    with pytest.raises(LookupError, match=r"has no score on l96-dt0\.1-test with unstructured_known_part"):
        stored_baseline(unknown, "LETKF", 10)


def test_starts_are_apart_and_are_parts_of_the_test_set():
    looked = []

    def look(baseline, twin, seed, progress):
        looked.append((twin, seed))
        series = np.ones(len(twin.observations))
        return BaselineRun(baseline, twin.truth, series, series, series, 1.0, len(looked) % 2 == 0, 1, "")

    whole = SETTING.load()
    assert benchmark.diverged_starts(START, whole, run=look) == 2
    assert len({seed for _, seed in looked}) == len(looked) == 5
    for index, (part, _) in enumerate(looked):
        cycles = slice(index * 1040, index * 1040 + 400)
        np.testing.assert_array_equal(part.climatology, whole.states)
        np.testing.assert_array_equal(part.observations, whole.observations[cycles])
        np.testing.assert_array_equal(part.truth, whole.truth[cycles])
        np.testing.assert_array_equal(part.seen, whole.seen[cycles])


def test_many_comparisons_yield_all_their_results():
    assert [path.stem for path in compare_all(OTHERS, run=Valley())] == [one.name for one in OTHERS]


OTHERS = [CONTENDER, Contender(SETTING, START.model_copy(update={"m": 20}))]
SLOW_WORKERS = """
import time
from test_benchmark import OTHERS, Valley, compare_all

def slow(baseline, *arguments, **options):
    time.sleep(0.5 if baseline.m == 20 else 0)
    return Valley()(baseline, *arguments, **options)

if __name__ == "__main__":
    list(compare_all(OTHERS, workers=2, run=slow))
"""


def test_workers_find_the_same_and_can_be_stopped(tmp_path):
    """By Ctrl-C; what they have found until then, results and trials, is kept."""
    (tmp_path / "slow.py").write_text(SLOW_WORKERS)
    path = os.pathsep.join(str(ROOT / folder) for folder in (".", "tests", "tests/study"))
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen([sys.executable, str(tmp_path / "slow.py")], env=environment, start_new_session=True)
    result, trials = results_dir() / f"{OTHERS[0].name}.json", trials_path(OTHERS[1])
    until = time.monotonic() + 120
    while not (result.exists() and trials.exists()):
        assert time.monotonic() < until
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == -signal.SIGINT
    assert psutil.wait_procs(children, timeout=30)[1] == []
    of_worker, begun = result.read_bytes(), load_trials(OTHERS[1])
    assert [path.name for path in results_dir().iterdir()] == [result.name]
    list(compare_all(OTHERS, run=Valley()))
    assert load_trials(OTHERS[1])[: len(begun)] == begun
    assert compare(CONTENDER, again=True, progress=False, run=Valley()).read_bytes() == of_worker


@pytest.mark.parametrize("asked", ["--workers 2", "--scheduler tcp://127.0.0.1:1"])
def test_workers_without_their_package_are_one_sentence(asked, command, monkeypatch):
    pytest.importorskip("dapper")
    monkeypatch.delitem(sys.modules, "assim_lib.workers", raising=False)
    monkeypatch.setitem(sys.modules, "distributed", None)
    code, _, said = command(f"baselines --system ks {asked}")
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith("assim_lib baselines: several workers need distributed, of the extra `sweep`: ")


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.slug)
def test_every_cell_of_the_table_is_filled_and_its_search_is_at_an_end(setting, monkeypatch):
    """To repeat the stored searches is to read them: the command would make no other trial and no other score."""
    monkeypatch.delenv("ASSIM_DATA")
    validation_set = setting.load("validation")

    def untried(baseline, *_, **__):
        pytest.fail(f"{baseline} was never tried")

    for contender in contenders(setting):
        finalists = Search(contender, validation_set, run=untried).finalists()
        wanted = [trial.hyperparameters for trial in finalists]
        assert benchmark.is_stored(results_dir() / f"{contender.name}.json", wanted), contender.name
