"""What a cycle costs: everything in one run, and goals as ratios within it."""

import itertools

import pytest

from assim_lib.storage import IntegrityError
from assim_lib.study import cost


@pytest.fixture
def clocks(monkeypatch):
    """Methods whose times are known: a goal is met exactly, missed, and met by the compiled form alone."""
    times = {("fast", False): 1.0, ("slow", False): 4.0, ("slow", True): 2.0, ("classical", False): 10.0}
    scatter = {key: itertools.cycle([3.0, 1.0, 0.5]) for key in times}
    runs = {key: lambda key=key: times[key] * next(scatter[key]) for key in times}
    monkeypatch.setattr(cost, "_classical", lambda: {})
    monkeypatch.setattr(cost, "_learned", lambda _compiled: runs)
    monkeypatch.setattr(
        cost, "GOALS", [("fast", "classical", 10.0), ("slow", "classical", 10.0), ("slow", "classical", 5.0)]
    )


@pytest.mark.usefixtures("clocks")
def test_medians_of_repeats_in_turn_and_ratios_of_the_best_forms(tmp_path, monkeypatch):
    monkeypatch.setenv("ASSIM_DATA", str(tmp_path))
    read = cost.CycleCosts.read(cost.write_cycle_costs(repeats=3))
    assert [(c.name, c.compiled, c.median, c.least) for c in read.costs][:2] == [
        ("fast", False, 1.0, 0.5),
        ("slow", False, 4.0, 2.0),
    ]
    assert [(goal.ratio, goal.met) for goal in read.goals] == [(10.0, True), (5.0, False), (5.0, True)]
    assert read.provenance.versions["torch"]


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "cycles.json").write_text('{"measured": "how"}')
    with pytest.raises(IntegrityError, match="is no CycleCosts"):
        cost.CycleCosts.read(tmp_path / "cycles.json")
