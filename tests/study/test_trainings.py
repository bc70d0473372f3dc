"""Learning curves and what trainings cost."""

from small import write_result
from small_runs import write_learned

from assim_lib.study import trainings


def test_learning_curves_are_those_of_the_checkpoints_of_a_choice(own):
    """Of runs that are called the same, the best on validation data."""
    write_result(own, "classical", system="ks")
    curves = [
        write_learned(own, name, validation, system=system, label=label)
        for name, validation, system, label in (
            ("a", 0.3, "l96", "hybrid"),
            ("b", 0.2, "l96", "hybrid"),
            ("c", 0.4, "l96", "hybrid"),
            ("d", 0.1, "ks", "gated"),
        )
    ]
    assert trainings.histories(system="l96") == {"hybrid, m = 5": curves[1]}
    assert trainings.histories(system=["ks", "vl20"]) == {"gated, m = 5": curves[3]}
    assert trainings.histories().keys() == {"hybrid, m = 5", "gated, m = 5"}
    runs = trainings.training_runs(system="l96")
    assert runs.name.tolist() == ["a", "b", "c"]
    assert set(runs.core_minutes) == {1.5}


def test_a_training_that_went_on_from_a_filter_counts_from_its_first_update(own):
    """Its curve has the earlier points of the same setting; those of another are no errors in this one."""
    shape = {"updates": 10, "batch": 2, "window": 5}
    write_learned(own, "elsewhere", 0.9, options={**shape, "noise": 2.0}, noise=2.0)
    write_learned(own, "first", 0.5, options={**shape, "pretrained": "elsewhere"})
    write_learned(own, "second", 0.4, options={**shape, "pretrained": "first", "batch": 4})
    (curve,) = trainings.histories(system="l96", noise=1.0).values()
    assert [(point["validation_rmse"], point["cycles"]) for point in curve] == [(0.5, 110), (0.4, 220)]
    (last,) = trainings.training_runs().query("name == 'second'").to_dict("records")
    assert (last["updates"], last["cycles_seen"], last["core_minutes"]) == (30, 400, 4.5)
    assert last["pretrained"] == "first"


def test_other_seeds_are_trained_alike_and_in_the_same_setting(own):
    """Where a training went on from a filter, that one may have had another seed; it may be no other filter."""
    write_learned(own, "begun-seed0", options={"seed": 0})
    write_learned(own, "begun-seed1", options={"seed": 1})
    here = {"pretrained": "begun-seed0", "seed": 0}
    write_learned(own, "further-seed0", options=here)
    write_learned(own, "further-seed1", options=here | {"pretrained": "begun-seed1", "seed": 1})
    write_learned(own, "further-seed2", options=here | {"seed": 2})
    write_learned(own, "longer", options=here | {"updates": 9})
    write_learned(own, "from another", options=here | {"pretrained": "longer"})
    write_learned(own, "elsewhere", options=here | {"noise": 2.0}, noise=2.0)
    assert trainings.other_seeds("further-seed0.safetensors").file.tolist() == [
        "further-seed1.json",
        "further-seed2.json",
    ]
    assert trainings.other_seeds("begun-seed1.safetensors").file.tolist() == ["begun-seed0.json"]
    assert trainings.other_seeds("longer.safetensors").empty
