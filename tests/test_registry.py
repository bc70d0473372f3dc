"""Names that a reader adds stand beside the library's own."""

import sys

import pytest

from assim_lib.analyses import ANALYSES
from assim_lib.losses import LOSSES
from assim_lib.networks import NETWORKS
from assim_lib.observations import OBS_CONFS
from assim_lib.registry import Registry, import_plugins
from assim_lib.systems import SYSTEMS


@pytest.fixture
def things() -> Registry[object]:
    return Registry("thing")


def test_what_is_registered_is_found_and_may_be_registered_again(things):
    for number in (1, 2):  # as when a cell is run again

        @things.register("one")
        def one(number=number):
            return number

        assert things.find("one") is one
        assert one() == number
    assert list(things) == ["one"]


@pytest.mark.parametrize("registry", [SYSTEMS, OBS_CONFS, NETWORKS, ANALYSES, LOSSES], ids=lambda one: one.kind)
def test_the_librarys_names_are_taken(registry):
    for name, own in list(registry.items()):
        sentence = rf"^{registry.kind} = '{name}' is the library's own already; choose another name\.$"
        with pytest.raises(ValueError, match=sentence):
            registry.register(name)(type("Mine", (), {"__module__": "notebook"}))
        assert registry.find(name) is own
        assert own.__module__.startswith("assim_lib.")


def test_an_unknown_name_gets_a_hint_and_the_list(things):
    things |= {"full_obs": 1, "other": 2}
    for name, hint in (("ful_obs", r" \(did you mean 'full_obs'\?\)"), ("xyz", "")):
        with pytest.raises(ValueError, match=rf"^thing = '{name}' is not registered{hint}; known: full_obs, other\.$"):
            things.find(name)


@pytest.mark.usefixtures("readers_cell")
def test_plugins_are_imported_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "first_plugin.py").write_text("loaded = True\n")
    (tmp_path / "second_plugin.py").write_text("import nowhere_to_be_found\n")
    import_plugins("")
    import_plugins(" first_plugin, ")
    assert sys.modules.pop("first_plugin").loaded
    with pytest.raises(ValueError, match=r"^plugins = 'second_plugin' cannot be imported: No module named 'nowhere"):
        import_plugins("second_plugin")
