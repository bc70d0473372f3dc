"""What a run may be: every layer in its order, and one clear sentence for every mistake."""

import json
import math
import types

import pytest
import torch
from pydantic import ValidationError

from assim_lib.experiments import (
    ANALYSIS_DEFAULTS,
    EXPERIMENTS,
    PRESETS,
    Experiment,
    ParameterError,
    configure,
    notebook_parameters,
)
from assim_lib.observations import OBS_CONFS

ANALYSES = list(ANALYSIS_DEFAULTS)


# ---- mistakes


@pytest.mark.parametrize(
    ("options", "beginning"),
    [
        ({"noize": 1.0}, "Unknown parameter `noize`: did you mean `noise`? Known parameters: "),
        ({"xyzzy": 1.0}, "Unknown parameter `xyzzy`: Known parameters: "),
        (
            {"test_dropout": "false"},
            "test_dropout = 'false' (of type str) is not allowed; test_dropout is True or False",
        ),
        ({"test_dropout": 0}, "test_dropout = 0 (of type int) is not allowed; test_dropout is True or False"),
        ({"lr": "1e-3"}, "lr = '1e-3' (of type str) is not allowed; lr is "),
        ({"noise": -1}, "noise = -1 (of type int) is not allowed; noise is "),
        ({"noise": 0.0}, "noise = 0.0 (of type float) is not allowed; noise is "),
        ({"noise": math.nan}, "noise = nan (of type float) is not allowed; noise is "),
        ({"lr": math.inf}, "lr = inf (of type float) is not allowed; lr is "),
        ({"m": 0}, "m = 0 (of type int) is not allowed; m is the ensemble size, a whole number ≥ 1."),
        ({"m": 10.0}, "m = 10.0 (of type float) is not allowed; m is "),
        ({"m": "10"}, "m = '10' (of type str) is not allowed; m is "),
        ({"m": True}, "m = True (of type bool) is not allowed; m is "),
        ({"m": [10]}, "m = [10] (of type list) is not allowed; m is "),
        ({"lag": -1}, "lag = -1 (of type int) is not allowed; lag is "),
        ({"lag": 21}, "lag = 21 (of type int) is not allowed; lag is "),
        ({"dropout": 1.0}, "dropout = 1.0 (of type float) is not allowed; dropout is "),
        ({"seed": -1}, "seed = -1 (of type int) is not allowed; seed is a whole number ≥ 0."),
        ({"analysis": "magic"}, "analysis = 'magic' (of type str) is not allowed; analysis is 'original', "),
        ({"preset": "fast"}, "preset = 'fast' (of type str) is not allowed; preset is 'quick' "),
        ({"preset": ["quick"]}, "preset = ['quick'] (of type list) is not allowed; preset is 'quick' "),
        ({"loss": "mse"}, "loss = 'mse' (of type str) is not allowed; loss is 'ss_forecast'."),
        (
            {"obs_conf": "ful_obs"},
            "obs_conf = 'ful_obs' is not registered (did you mean 'full_obs'?); known: full_obs, ",
        ),
        ({"obs_conf": 3}, "obs_conf = 3 (of type int) is not allowed; obs_conf is "),
        ({"system": "l95"}, "system = 'l95' is not known; known: l96."),
        ({"step_size": 0.07}, "step_size = 0.07 must be a positive multiple of the integration step 0.05."),
        ({"step_size": -0.1}, "step_size = -0.1 (of type float) is not allowed; step_size is "),
        ({"m": 1, "analysis": "hybrid"}, "m = 1 does not work with analysis = 'hybrid', "),
        ({"m": 1, "analysis": "original"}, "m = 1 does not work with analysis = 'original', "),
        ({"m": 1}, "m = 1 does not work with analysis = 'original', "),
        ({"kernel": 4}, "kernel = 4 must be odd."),
        ({"cycles": 10, "window": 10}, "cycles = 10 must be more than window = 10."),
        ({"batch": 33, "pool": 32}, "batch = 33 must be at most pool = 32."),
        ({"analysis": "recurrent", "test_dropout": True}, "test_dropout = True needs dropout > 0, and dropout = 0.0."),
        ({"analysis": "recurrent", "band": 1}, "band = 1 is not used by analysis = 'recurrent'; set it to 0."),
        ({"experiment": "l96_conv"}, "Unknown parameter `experiment`: "),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_mistake_is_one_sentence(options, beginning):
    with pytest.raises(ParameterError) as caught:
        configure("l96_conv", **options)
    sentence = str(caught.value)
    assert sentence.startswith(beginning)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert caught.value.__suppress_context__ or not caught.value.__context__  # no second traceback above it
    assert caught.value._render_traceback_() == [f"ParameterError: {sentence}"]


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ParameterError, match=r"^device = 'cuda' asks for a GPU, and there is none; use 'auto' or 'cpu'\.$"
    ):
        configure(device="cuda")
    assert configure(device="auto").torch_device == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert configure(device="cuda").torch_device == configure(device="auto").torch_device == torch.device("cuda")
    assert configure(device="cpu").torch_device == torch.device("cpu")


def test_an_unknown_experiment():
    with pytest.raises(ParameterError, match=r"^experiment = 'l97' is not known; known: l96_conv"):
        configure("l97")


# ---- layers


@pytest.mark.parametrize("obs_conf", list(OBS_CONFS))
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("analysis", ANALYSES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_preset_of_every_analysis_is_valid(experiment, analysis, preset, obs_conf):
    chosen = configure(experiment, analysis=analysis, preset=preset, obs_conf=obs_conf)
    layers = [EXPERIMENTS[experiment], ANALYSIS_DEFAULTS[analysis], PRESETS[preset][analysis]]
    expected = {name: field.default for name, field in Experiment.model_fields.items()}
    for layer in layers:
        expected |= layer
    expected |= {"experiment": experiment, "analysis": analysis, "preset": preset, "obs_conf": obs_conf}
    assert chosen.model_dump() == expected


def test_what_is_asked_for_beats_preset_beats_analysis_beats_default(monkeypatch):
    def width(**options):
        return configure(**options).hidden_size

    monkeypatch.setitem(EXPERIMENTS["l96_conv"], "hidden_size", 2)
    assert width() == 2
    monkeypatch.setitem(ANALYSIS_DEFAULTS["original"], "hidden_size", 3)
    assert width() == 3
    monkeypatch.setitem(PRESETS["quick"]["original"], "hidden_size", 4)
    assert width() == 4
    assert width(preset="cpu") == 3
    assert width(hidden_size=5) == 5
    assert width(hidden_size=None) == 4  # None: whatever the preset says


def test_presets_know_every_analysis():
    assert all(sizes.keys() == ANALYSIS_DEFAULTS.keys() for sizes in PRESETS.values())


# ---- the object


def test_an_experiment_survives_json():
    for analysis in ANALYSES:
        chosen = configure(analysis=analysis, noise=2, seed=3, step_size=0.15)
        assert Experiment.model_validate_json(chosen.model_dump_json()) == chosen
        assert Experiment.model_validate_json(json.dumps(chosen.model_dump())) == chosen


def test_an_experiment_does_not_change():
    chosen = configure()
    with pytest.raises(ValidationError):
        chosen.noise = 2.0
    assert chosen.noise == 1.0


def test_names_tell_runs_apart():
    changes = [
        {}, {"seed": 1}, {"m": 5}, {"analysis": "hybrid"}, {"analysis": "hybrid", "lag": 5}, {"noise": 0.5}, {"step_size": 0.2},
        {"obs_conf": "every_4th_fixed"},
    ]  # fmt: skip
    names = [configure(**change).name for change in changes]
    assert len(set(names)) == len(names)


def test_the_methods_name_in_the_table():
    assert [configure(analysis=a).method for a in ANALYSES] == ["amortized_original", "amortized", "amortized"]


# ---- notebooks


def namespace(**parameters):
    """What a notebook's namespace holds after its parameters cell."""
    private = dict.fromkeys(["_", "__", "_i", "_i1", "_ih", "_oh", "_dh", "__name__", "__doc__"], "")
    ipython = {"In": ["", "x = 1"], "Out": {}, "exit": object(), "quit": object(), "open": open, "get_ipython": len}
    imports = {"json": json, "torch": torch, "configure": configure, "Experiment": Experiment}
    return {**private, **ipython, **imports, **parameters}


def test_a_notebooks_parameters_are_its_plain_values():
    assert isinstance(json, types.ModuleType)
    parameters = {"obs_conf": "full_obs", "noise": 1.0, "m": None, "test_dropout": False}
    assert notebook_parameters(namespace(**parameters)) == parameters
    assert notebook_parameters(namespace(**parameters, metrics="out.json"), "metrics")["metrics"] == "out.json"
    assert configure(**notebook_parameters(namespace(**parameters))) == configure(test_dropout=False)


@pytest.mark.parametrize(
    ("name", "meant"), [("noize", "noise"), ("obsconf", "obs_conf"), ("hidden", "hidden_size"), ("metric", "metrics")]
)
def test_a_misspelt_parameter_of_a_notebook_is_one_sentence(name, meant):
    with pytest.raises(
        ParameterError, match=rf"^Unknown parameter `{name}`: did you mean `{meant}`\? Known parameters: "
    ):
        notebook_parameters(namespace(**{name: 1}), "metrics")
