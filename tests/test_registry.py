"""Names that a reader adds stand beside the library's own."""

import re
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from small import Quick

from assim_lib.analyses import ANALYSES, register_analysis
from assim_lib.losses import LOSSES
from assim_lib.networks import NETWORKS, register_network
from assim_lib.observations import OBS_CONFS, observation_model
from assim_lib.registry import Registry, import_plugins
from assim_lib.systems import SYSTEMS, Dynamics, register_system, system_of


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


@dataclass(frozen=True)
class Sizeless(Dynamics):
    name: ClassVar[str] = "sizeless"
    rest = tendency = Quick.tendency


class Bare(Quick):
    name = "bare"

    def __init__(self, sites, dt):
        super().__init__()


@pytest.mark.usefixtures("readers_cell", "unchecked_shapes")
@pytest.mark.parametrize(
    ("mistaken", "sentence"),
    [
        (lambda: register_network(torch.nn.Linear), "network is registered by a name: @register_network('…'), with"),
        (
            lambda: register_analysis("mine")(len),
            "analysis = 'mine' is <built-in function len>; it must be a cla",
        ),
        (lambda: register_network("mine")(3), "network = 'mine' is 3; it must be callable."),
        (
            lambda: register_system("mine"),
            "what is registered as a system is 'mine'; it must be a cla",
        ),
        (
            lambda: system_of(register_system(Sizeless).name),
            "system = 'sizeless', a @dataclass(frozen=True) with a",
        ),
        (lambda: system_of(register_system(Bare).name), "system = 'bare', a @dataclass(frozen=True) with a"),
        (lambda: observation_model(named(lambda: None), 1, 40), "obs_conf = 'mine' fails for (1, 40): TypeError: "),
        (lambda: observation_model(named(lambda *_: [][1]), 1, 40), "obs_conf = 'mine' fails for (1, 40): Ind"),
    ],
)
def test_a_mistake_in_what_a_reader_registers_is_one_sentence(mistaken, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        mistaken()


def named(make):
    OBS_CONFS.register("mine")(make)
    return "mine"


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
