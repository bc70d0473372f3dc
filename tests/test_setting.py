"""A setting is spelled in one place, and read without PyTorch."""

import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

import assim_lib
from assim_lib.setting import SETTING_COLUMNS, Setting

QUARTER = "every_4th_dim_partial_obs"


@pytest.mark.parametrize(
    ("parts", "slug", "title"),
    [
        ((), "l96-full_obs-dt0.1-s1", "L96, all sites, σ = 1"),
        (
            ("l96", "every_4th_fixed", 0.15, 0.7),
            "l96-every_4th_fixed-dt0.15-s0.7",
            "L96, fixed quarter, Δt = 0.15, σ = 0.7",
        ),
        (("vl20", QUARTER), f"vl20-{QUARTER}-dt0.1-s1", "VL20, moving quarter, σ = 1"),
        (("ks", "partial_obs", 1.0, 2.5), "ks-partial_obs-dt1-s2.5", "KS, moving half, σ = 2.5"),
        (("ks", "full_obs", 0.1), "ks-full_obs-dt0.1-s1", "KS, all sites, Δt = 0.1, σ = 1"),
        (("l96", "random_25_moving"), "l96-random_25_moving-dt0.1-s1", "L96, random 25 %, moving, σ = 1"),
        (("mine", "my_sensors"), "mine-my_sensors-dt0.1-s1", "mine, my_sensors, σ = 1"),
    ],
    ids=str,
)
def test_a_setting_has_one_name_for_files_and_one_to_be_read(parts, slug, title):
    setting = Setting(*parts)
    assert (setting.slug, setting.observing) == (slug, slug.split("-", 1)[1])
    assert setting.title.replace("\N{NBSP}", " ") == title
    assert ", ".join(setting.names) == setting.title
    assert setting.names[-1] == f"σ\N{NBSP}=\N{NBSP}{setting.noise:g}"  # not broken at the end of a line
    assert list(setting.as_dict()) == SETTING_COLUMNS
    assert Setting(**setting.as_dict()) == setting


def test_settings_are_values():
    settings = {Setting("ks"): 1, Setting("l96", noise=2.0): 2, Setting("l96", noise=1.0): 3}
    assert settings[Setting("l96")] == 3
    assert [settings[setting] for setting in sorted(settings)] == [1, 3, 2]
    with pytest.raises(FrozenInstanceError):
        Setting().noise = 2.0


LAZY = """
import sys
import assim_lib
assert not set(sys.modules) & {"torch", "numpy", "pandas", "scipy", "dapper"}
from assim_lib import Setting
assert Setting().title
import assim_lib.classical.contenders
from assim_lib import Scores
assert not set(sys.modules) & {"torch", "dapper", "matplotlib"}
"""


def test_what_a_table_of_scores_needs_is_imported_without_more():
    done = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_public_name_is_there_when_asked_for():
    assert sorted(assim_lib._MODULE_OF) == assim_lib.__all__
    assert {*assim_lib.__all__} <= {*dir(assim_lib)}
    for name in assim_lib.__all__:
        assert callable(getattr(assim_lib, name))
    with pytest.raises(AttributeError, match=r"^module 'assim_lib' has no attribute 'asimilate'$"):
        assim_lib.asimilate  # noqa: B018
