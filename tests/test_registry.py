"""Names that a reader adds stand beside the library's own."""

import pytest

from assim_lib.registry import Registry


def test_what_is_registered_is_found():
    things: Registry[object] = Registry("thing")

    @things.register("one")
    def one():
        """A reader's own."""

    assert things.find("one") is one
    assert list(things) == ["one"]


def test_running_a_cell_again_replaces_what_it_registered():
    things: Registry[object] = Registry("thing")
    for value in (1, 2):
        things.register("mine")(value)
    assert things.find("mine") == 2


def test_the_librarys_names_are_taken():
    things: Registry[object] = Registry("thing")
    things.register("registry")(Registry)
    with pytest.raises(ValueError, match=r"thing = 'registry' is the library's own already; choose another name\."):
        things.register("registry")(object())
    assert things.find("registry") is Registry


def test_an_unknown_name_gets_a_hint_and_the_list():
    things: Registry[object] = Registry("thing")
    things.register("full_obs")(1)
    things.register("other")(2)
    with pytest.raises(
        ValueError, match=r"thing = 'ful_obs' is not registered \(did you mean 'full_obs'\?\); known: full_obs, other\."
    ):
        things.find("ful_obs")
    with pytest.raises(ValueError, match=r"thing = 'xyz' is not registered; known: full_obs, other\."):
        things.find("xyz")
