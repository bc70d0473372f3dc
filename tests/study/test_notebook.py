"""The parameters of a notebook: what it declares, found right before anything is computed."""

import json
import math

import pytest
import torch

from assim_lib.observations import OBS_CONFS
from assim_lib.study.notebook import notebook_parameters
from assim_lib.systems import SYSTEMS
from assim_lib.training.experiment import Experiment, ParameterError, configure

# What a notebook's own parameters may be here: a number in bounds, one of a list, a registered name, any text.
ALLOWED = {"starts": (1.0, 50.0), "against": ["recipe", "lag 0", ""], "sensor": OBS_CONFS, "title": None}
OWN = {"starts": 8, "against": "recipe", "sensor": "full_obs", "title": "mine", "share": 0.5}
OPTIONS = {"noise": 1.0, "m": 10, "test_dropout": False, "obs_conf": "full_obs"}
COMMON = {"metrics": "out.json", "folder": "", "plugins": ""}


def namespace(injected=None, /, **declared):
    """What a notebook's namespace holds after its parameters cell, and papermill's."""
    private = dict.fromkeys(["_", "__", "_i", "_i1", "_ih", "_oh", "_dh", "__name__", "__doc__"], "")
    ipython = {"In": ["", "x = 1"], "Out": {}, "exit": object(), "quit": object(), "open": open, "get_ipython": len}
    imports = {"json": json, "torch": torch, "configure": configure, "Experiment": Experiment, "OBS_CONFS": OBS_CONFS}
    annotations = {"__annotations__": {name: type(value) for name, value in declared.items()}}
    return {**private, **ipython, **imports, **annotations, **declared, **(injected or {})}


def own_parameters(injected=None):
    """Of a notebook that has no experiment."""
    return notebook_parameters(namespace(injected, **OWN, **COMMON), **ALLOWED, share=(0.0, 1.0))


def options_of_an_experiment(injected=None):
    """Of a notebook that has one."""
    return notebook_parameters(namespace(injected, **OPTIONS, **COMMON), "l96_conv")


def sentence_about(read, injected):
    with pytest.raises(ParameterError) as caught:
        read(injected)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


def test_parameters_are_options_of_the_experiment_or_the_notebooks_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = namespace({"noise": 2, "metrics": "runs/out.json"}, **OPTIONS, **COMMON, starts=8)
    p = notebook_parameters(given, "l96_conv", starts=(1.0, 50.0))
    assert p.experiment == configure("l96_conv", **{**OPTIONS, "noise": 2.0})
    assert p.options == {**OPTIONS, "noise": 2}
    assert (p.starts, p.folder) == (8, None)
    with pytest.raises(AttributeError, match="has no parameter 'stops'"):
        _ = p.stops
    p.write_metrics(rmse=0.5, spread=math.nan)
    assert capsys.readouterr().out == "metrics: out.json\n"
    assert json.loads((tmp_path / "runs" / "out.json").read_text()) == {"rmse": 0.5, "spread": None}


def test_a_notebook_may_have_no_experiment():
    p = own_parameters({"against": "", "sensor": "", "share": 1})
    assert (p.starts, p.against, p.sensor, p.title, p.share) == (8, "", "", "mine", 1)
    assert p.options == {}
    with pytest.raises(ParameterError, match="no experiment"):
        _ = p.experiment


@pytest.mark.parametrize(
    ("injected", "sentence"),
    [
        ({"noize": 1}, "Unknown parameter `noize`: did you mean `noise`? Known parameters: noise, m, test_dropout, "),
        ({"metric": "x"}, "Unknown parameter `metric`: did you mean `metrics`? Known parameters: "),
        # An option of the experiment that this notebook does not have.
        ({"window": 3}, "Unknown parameter `window`: Known parameters: noise, m, test_dropout, obs_conf, metrics, "),
        ({"noise": -1}, "noise = -1 (of type int) is not allowed; noise is the observation error's standard deviation"),
        # What papermill's -y makes of 1e-3.
        ({"noise": "1e-3"}, "noise = '1e-3' (of type str) is not allowed; noise is the observation error's standard"),
        ({"test_dropout": "false"}, "test_dropout = 'false' (of type str) is not allowed; test_dropout is True or Fal"),
        ({"obs_conf": "ful_obs"}, "obs_conf = 'ful_obs' is not registered (did you mean 'full_obs'?); known: "),
        ({"m": 1}, "m = 1 does not work with analysis = 'original'; "),
        ({"metrics": 3}, "metrics = 3 (of type int) is not allowed; metrics is of type str."),
        ({"metrics": ""}, "metrics = '' is not allowed; metrics is the path of a file."),
        ({"metrics": "/"}, "metrics = '/' is not allowed; metrics is the path of a file."),
        ({"folder": __file__}, f"folder = {__file__!r} is not allowed; folder is the path of a folder, or empty."),
        ({"plugins": "no_such_module"}, "plugins = 'no_such_module' cannot be imported: No module named "),
    ],
    ids=str,
)
def test_a_wrong_parameter_of_an_experiment_is_one_sentence(injected, sentence):
    assert sentence_about(options_of_an_experiment, injected).startswith(sentence)


@pytest.mark.parametrize(
    ("injected", "sentence"),
    [
        ({"starts": "8"}, "starts = '8' (of type str) is not allowed; starts is of type int."),
        ({"starts": True}, "starts = True (of type bool) is not allowed; starts is of type int."),
        ({"starts": 8.0}, "starts = 8.0 (of type float) is not allowed; starts is of type int."),
        ({"starts": 51}, "starts = 51 is not allowed; starts is a number from 1 to 50."),
        ({"share": math.nan}, "share = nan is not allowed; share is a number from 0 to 1."),
        ({"against": "lag 99"}, "against = 'lag 99' is not known; known: recipe, lag 0."),
        ({"sensor": "ful_obs"}, "obs_conf = 'ful_obs' is not registered (did you mean 'full_obs'?); known: full_obs"),
        ({"title": 3}, "title = 3 (of type int) is not allowed; title is of type str."),
        ({"start": 3}, "Unknown parameter `start`: did you mean `starts`? Known parameters: starts, against, sensor, "),
    ],
    ids=str,
)
def test_a_wrong_parameter_of_the_notebooks_own_is_one_sentence(injected, sentence):
    assert sentence_about(own_parameters, injected).startswith(sentence)


PLUGIN = """
import torch
from assim_lib.observations import ObservationModel, register_obs_conf
from assim_lib.systems import Lorenz96, register_system

@register_system
class Ring(Lorenz96):
    name = "plugin_ring"
    def __init__(self):
        super().__init__(sites=10)

@register_obs_conf("plugin_sensor")
def sensor(channels, sites):
    return ObservationModel(torch.ones(1, channels, sites, dtype=torch.bool))
"""


def test_plugins_are_imported_before_the_names_that_they_register_are_looked_for(tmp_path, monkeypatch, readers_cell):
    (tmp_path / "own_parts.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    assert own_parameters({"sensor": "plugin_sensor", "plugins": "own_parts"}).sensor == "plugin_sensor"
    given = namespace({"plugins": "json, own_parts", "system": "plugin_ring"}, **OPTIONS, **COMMON, system="l96")
    assert notebook_parameters(given, "l96_conv").experiment.forecast_model.sites == 10
    assert "plugin_ring" in SYSTEMS


def test_the_two_cells_may_be_run_again():
    """By then the namespace holds more than parameters."""
    given = namespace(**OPTIONS, **COMMON)
    notebook_parameters(given, "l96_conv")
    given |= {"model": torch.zeros(1), "k": 3, "noise": 0.5}
    assert notebook_parameters(given, "l96_conv").experiment.noise == 0.5
    with pytest.raises(ParameterError, match=r"^noise = 0 "):
        notebook_parameters({**given, "noise": 0}, "l96_conv")
