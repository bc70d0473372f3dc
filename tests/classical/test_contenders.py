"""The table of classical methods is whole, and each search can start."""

import pytest

from assim_lib.classical.contenders import GRID, SETTINGS, choose, contenders


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.slug)
def test_every_setting_has_its_contenders_and_a_frozen_set(setting):
    assert setting.load("test").frozen
    assert setting.load("validation").frozen
    chosen = contenders(setting)
    assert len({contender.name for contender in chosen}) == len(chosen)
    sizes = {method: [c.start.m for c in chosen if c.start.method == method] for method in GRID}
    assert sizes["LETKF"] == [5, 10, 20, 30]
    if setting.obs_conf.endswith("upstream"):  # beside the paper's best score only
        assert sizes["iEnKS"] == [30]
    else:
        assert set(sizes["iEnKS"]) == {5, 10, 20, 30, 100}
        assert all(sizes.values())
    for contender in chosen:
        # A search can start only on its grid, and DAPPER must be told nothing that is not there.
        for name, values in contender.grid.items():
            assert contender.start.hyperparameters[name] in values
        assert (contender.role == "reference") == (contender.start.m > 30)


def test_contenders_are_chosen_by_setting_method_and_size():
    assert len(choose()) == sum(len(contenders(setting)) for setting in SETTINGS)
    chosen = choose(system=["ks"], noise=[1.0], method=["LETKF", "4D-Var"], m=[10, 1])
    assert {contender.setting.system for contender in chosen} == {"ks"}
    assert {contender.start.label for contender in chosen} == {"LETKF N=10", "4D-Var"}
    with pytest.raises(ValueError, match=r"^m = 7 has no classical methods; take one of \[5, 10, 20, 30\]\.$"):
        choose(method=["LETKF"], m=[7])
