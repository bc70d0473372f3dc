"""What things cost: everything in one run, and goals as ratios within it."""

import itertools

import pandas as pd
import pytest
import torch

from assim_lib.storage import IntegrityError
from assim_lib.study.cost import (
    Costs,
    Effort,
    accuracy,
    bench,
    cost_path,
    cycles,
    goals,
    profile,
    run_sections,
    scaling,
)
from assim_lib.study.cost.measuring import in_turns
from assim_lib.training.checkpoints import load_filter


def test_medians_of_repeats_in_turn():
    times = {"fast": itertools.cycle([3.0, 1.0, 0.5]), "slow": itertools.cycle([8.0, 2.0, 4.0])}
    found = in_turns({key: lambda key=key: next(times[key]) for key in times}, 3, "turns")
    assert found == {"fast": {"ms": 1.0, "least": 0.5}, "slow": {"ms": 4.0, "least": 2.0}}


def test_a_section_is_stored_with_its_machine(tmp_path, monkeypatch):
    rows = [{"name": "one", "ms": 1.0}]
    monkeypatch.setenv("ASSIM_DATA", str(tmp_path))
    monkeypatch.setitem(bench.SECTIONS, "training", ("how", lambda effort: rows * effort.repeats))
    (path,) = run_sections(["training"], Effort(repeats=2))
    read = Costs.read(path)
    assert (read.section, read.measured, read.rows) == ("training", "how", rows * 2)
    assert read.machine.cores >= 1
    assert read.provenance.versions["torch"]


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "cycles.json").write_text('{"measured": "how"}')
    with pytest.raises(IntegrityError, match="is no Costs"):
        Costs.read(tmp_path / "cycles.json")


def test_goals_are_ratios_of_the_best_forms():
    """Met exactly, missed, and met by the compiled form alone."""
    times = {("recurrent", False): 1.0, ("hybrid lag 3", False): 4.0, ("hybrid lag 3", True): 0.5}
    times |= {("original m=5", False): 0.1, ("LETKF m=10", False): 10.0, ("iEnKS m=30 Lag 3", False): 4.0}
    times |= {("extended lag 10", False): 6.0, ("iEnKS m=30 Lag 10", False): 5.0}
    times |= {(f"{name}, {cycles.PRODUCTS}", False): 0.25 for name in ("recurrent", "original m=5", "hybrid lag 3")}
    table = pd.DataFrame([{"name": n, "batch": 1, "compiled": c, "ms": ms} for (n, c), ms in times.items()])
    nothing = pd.DataFrame()  # is profiled
    found = {goal.what: (goal.measured, goal.met) for goal in goals._of_cycles(table, nothing)}
    assert found["recurrent: times cheaper than LETKF m=10"] == (10.0, True)
    assert "alone take 0.25 ms" in next(goals._of_cycles(table, nothing)).why
    assert found["hybrid lag 3: times cheaper than LETKF m=10"] == (20.0, True)
    assert found["recurrent: times cheaper than iEnKS m=30 Lag 3"] == (4.0, False)
    assert found["recurrent: ms a cycle at batch 1"] == (1.0, False)
    assert found["extended lag 10: cost as a part of that of iEnKS m=30 Lag 10"] == (1.2, False)


def test_an_exponent_is_that_of_the_large_rings():
    sites = [40, 400, 4000, 40_000]
    rows = [{"name": "a", "sites": s, "ms": 5 + s**1.5, "memory": 50 + s**2 / 1e6} for s in sites]
    table = pd.DataFrame([*rows, {"name": "a", "sites": 400, "rmse": 0.2}])
    assert goals.exponent(*goals.of_large_rings(table, "a", "ms")) == pytest.approx(1.5, abs=1e-3)
    of_memory, _ = goals.of_large_rings(table, "a", "memory")
    assert list(of_memory) == [4000, 40_000]  # below, it is what Python takes


@pytest.mark.parametrize("name", ["recurrent", "hybrid lag 3"])
def test_a_filter_on_a_ring_that_repeats_itself_does_what_it_does_on_the_small_one(unchecked_shapes, name):
    experiment, model = load_filter(cycles.FILTERS[name], device="cpu")
    large = scaling.widened(model, experiment, 240)
    observations = torch.from_numpy(experiment.setting.load().observations[:12]).float()
    found = []
    for one, times in ((model, 1), (large, 6)):
        carry = one.cold_start(generator=torch.Generator().manual_seed(0))
        carry = carry._replace(
            base=model.climatology[: model.analysis.members].repeat(1, 1, times),
            forecast=model.climatology[: model.analysis.members].repeat(1, 1, times),
        )
        with torch.no_grad():
            for k, received in enumerate(observations[:4]):
                carry, analysis = one.cycle(carry, received.repeat(1, times), k)
        found.append(analysis.mean(-3))
    small, wide = found
    difference = (wide.unflatten(-1, (6, 40)) - small.unsqueeze(-2)).abs().max()
    # Around the small ring, where the localization of the hybrid has both ways, it is another filter.
    assert difference < (1e-3 if name == "recurrent" else 0.5)


def test_a_ring_is_made_of_whole_copies():
    experiment, model = load_filter(cycles.FILTERS["recurrent"], device="cpu")
    with pytest.raises(ValueError, match="sites = 100 must be a multiple of 40"):
        scaling.widened(model, experiment, 100)
    assert cost_path("cycles").name == "cycles.json"


def test_a_training_is_stopped_when_its_target_is_met(monkeypatch):
    small = accuracy.FROM_NOTHING | {"updates": 8, "segments": 2, "cycles": 60, "pool": 16}
    monkeypatch.setitem(accuracy.TARGETS, "small", accuracy.Target(3.0, 60, small))
    errors = iter([5.0, 4.0, 2.5, 2.0])
    monkeypatch.setattr(accuracy, "validation_rmse", lambda *_: next(errors))
    rows = accuracy.train_until("small", 1)
    assert [row["rmse"] for row in rows] == [5.0, 4.0, 2.5]
    assert accuracy.median_seconds(pd.DataFrame(rows), "small") == rows[-1]["seconds"]
    assert accuracy.reached(pd.DataFrame(rows[:2]), "small") == [float("inf")]


def test_finished_trainings_are_kept_and_the_others_done(tmp_path, monkeypatch):
    monkeypatch.setenv("ASSIM_CACHE", str(tmp_path))
    monkeypatch.setattr(accuracy, "SEEDS", (0, 1))
    monkeypatch.setattr(accuracy, "TARGETS", {"a": None})
    asked = []

    def one(_, name, seed):
        asked.append(seed)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return [{"name": name, "seed": seed, "seconds": 1.0, "rmse": 1.0}]

    monkeypatch.setattr(accuracy, "alone", one)
    with pytest.raises(KeyboardInterrupt):
        accuracy.measure()
    assert [row["seed"] for row in accuracy.measure()] == [0, 1]
    assert asked == [0, 1, 1]
    assert not list(tmp_path.iterdir())


def test_what_takes_long_is_measured_only_if_asked_for():
    assert set(bench.SECTIONS) - set(bench.USUAL) == {"accuracy", "profile"}


def test_a_ring_that_would_take_too_much_is_left_out_with_a_sentence(monkeypatch):
    costs = {40: (1.0, 1.0), 400: (10.0, 3000.0)}
    monkeypatch.setattr(scaling, "NAMES", ("a",))
    monkeypatch.setattr(scaling, "FILTERS", {"a": "a"})
    answers = {"cost_of_cycle": lambda _, sites: costs[sites], "errors": lambda _: (1, 1), "cost_of_letkf": lambda _: 1}
    monkeypatch.setattr(scaling, "alone", lambda function, *arguments: answers[function.__name__](*arguments))
    rows = scaling.measure(4000)
    skipped = [(row["sites"], row["skipped"]) for row in rows if "skipped" in row]
    assert skipped == [(4000, "a cycle would take 30 GB of memory")]


def test_shares_of_a_profile_are_all_of_it():
    x = torch.ones(64, 64)
    rows = profile.profiled(lambda: (x @ x).sigmoid())
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert "products of matrices" in {row["operation"] for row in rows}
    table = pd.DataFrame([{"name": "a", "sites": 40, "compiled": False, **row} for row in rows])
    assert "products of matrices" in profile.sentence(table, "a", 40)
    assert profile.sentence(table, "b", 40) == ""


def test_beside_a_gpu_the_processor_is_measured_all_the_same(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cycles, "FILTERS", {"recurrent": cycles.FILTERS["recurrent"]})
    monkeypatch.setattr(scaling, "CYCLES", 2)
    file = cycles.FILTERS["recurrent"]
    assert cycles._classical()
    assert all(run() > 0 for run in cycles._learned(compiled=False).values())
    assert scaling.cost_of_cycle(file, 40)[0] > 0
    assert all(error > 0 for error in scaling.errors(file))
    assert profile.of_small("recurrent", compiled=False)
