"""What a run may be: every layer in its order, and one clear sentence for every mistake."""

import json
import math
import types
from itertools import product

import pytest
import torch
from pydantic import ValidationError

from assim_lib.experiments import Experiment, ParameterError, configure, notebook_parameters
from assim_lib.observations import OBS_CONFS, ObservationModel
from assim_lib.presets import ANALYSIS_DEFAULTS, EXPERIMENTS, PRESETS, STARTS
from assim_lib.systems import Lorenz96

ANALYSES = list(ANALYSIS_DEFAULTS)
UNKNOWN = "unstructured_partial_obs"


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
        ({"analysis": "hybird"}, "analysis = 'hybird' is not registered (did you mean 'hybrid'?); known: original, "),
        ({"analysis": 3}, "analysis = 3 (of type int) is not allowed; analysis is the name of an analysis: 'original'"),
        ({"network": "cnn"}, "network = 'cnn' is not registered; known: conv, ff, ff_per_operator."),
        ({"network": True}, "network = True (of type bool) is not allowed; network is the name of a network: 'conv', "),
        ({"preset": "fast"}, "preset = 'fast' (of type str) is not allowed; preset is 'quick' "),
        ({"preset": ["quick"]}, "preset = ['quick'] (of type list) is not allowed; preset is 'quick' "),
        ({"loss": "mse"}, "loss = 'mse' (of type str) is not allowed; loss is 'ss_forecast', 'ss_analysis' or "),
        ({"start": "truths"}, "start = 'truths' (of type str) is not allowed; start is 'climatology', 'first_"),
        ({"inflation": 0.4}, "inflation = 0.4 (of type float) is not allowed; inflation is the factor on the "),
        ({"inflation": 2.1}, "inflation = 2.1 (of type float) is not allowed; inflation is the factor on the "),
        ({"taper_length": 0.0}, "taper_length = 0.0 (of type float) is not allowed; taper_length is the reach "),
        ({"drift": "1"}, "drift = '1' (of type str) is not allowed; drift is sites per cycle by which "),
        ({"drift": 0.5}, "drift = 0.5 is used by analysis = 'hybrid' only; set it to 0."),
        ({"dt": 0.0}, "dt = 0.0 (of type float) is not allowed; dt is the forecast model's integration step, "),
        ({"dt": "0.05"}, "dt = '0.05' (of type str) is not allowed; dt is the forecast model's integration step, "),
        ({"dt": 0.03}, "step_size = 0.1 must be a positive multiple of the integration step 0.03."),
        ({"clamp": 2.9}, "clamp = 2.9 (of type float) is not allowed; clamp is the largest state allowed, "),
        (
            {"obs_conf": "ful_obs"},
            "obs_conf = 'ful_obs' is not registered (did you mean 'full_obs'?); known: full_obs, ",
        ),
        ({"obs_conf": 3}, "obs_conf = 3 (of type int) is not allowed; obs_conf is "),
        ({"system": "l95"}, "system = 'l95' is not registered (did you mean 'l96'?); known: l96, "),
        # Two steps of the model, but no whole one of the truth.
        ({"system": "ks", "dt": 0.05}, "step_size = 0.1 must be a positive multiple of the integration step 0.5."),
        ({"step_size": 0.07}, "step_size = 0.07 must be a positive multiple of the integration step 0.05."),
        ({"step_size": -0.1}, "step_size = -0.1 (of type float) is not allowed; step_size is "),
        ({"m": 1, "analysis": "hybrid"}, "m = 1 does not work with analysis = 'hybrid', "),
        ({"m": 1, "analysis": "original"}, "m = 1 does not work with analysis = 'original', "),
        ({"m": 1}, "m = 1 does not work with analysis = 'original', "),
        ({"kernel": 4}, "kernel = 4 must be odd."),
        ({"settings": -1}, "settings = -1 (of type int) is not allowed; settings is the number of settings that one "),
        ({"settings": True}, "settings = True (of type bool) is not allowed; settings is the number of settings that "),
        (
            {"settings": 3, "system": "vl20"},
            "settings = 3 are those of system = 'l96' and its own integration step; set it to 0.",
        ),
        ({"settings": 3, "dt": 0.025}, "settings = 3 are those of system = 'l96' and its own integration step; "),
        (
            {"settings": 3, "network": "ff_per_operator", "obs_conf": "partial_obs"},
            "network = 'ff_per_operator' has a part for each operator, and settings = 3 have others each; take 'conv' or "
            "'ff'.",
        ),
        ({"cycles": 10, "window": 10}, "cycles = 10 must be more than window + growth · lag = 10."),
        ({"analysis": "extended", "m": 10}, "m = 10 does not work with analysis = 'extended', which carries"),
        ({"analysis": "extended", "band": 2}, "band = 2 is not used by analysis = 'extended'; set it to 0."),
        ({"batch": 33, "pool": 32}, "batch = 33 must be at most pool = 32."),
        ({"analysis": "recurrent", "test_dropout": True}, "test_dropout = True needs dropout > 0, and dropout = 0.0."),
        ({"analysis": "recurrent", "band": 1}, "band = 1 is not used by analysis = 'recurrent'; set it to 0."),
        (
            {"m": 1, "analysis": "recurrent", "inflation": 1.1},
            "inflation = 1.1 does nothing to m = 1; set it to 1.",
        ),
        (
            {"analysis": "hybrid", "lag": 0, "network": "ff", "obs_conf": UNKNOWN},
            f"analysis = 'hybrid' needs operators it may use, and some of obs_conf = '{UNKNOWN}' are unknown; take "
            "'original' or 'recurrent'.",
        ),
        (
            {"obs_conf": UNKNOWN},
            f"network = 'conv' treats all sites alike, and the unknown instruments of obs_conf = '{UNKNOWN}' do not; "
            "take 'ff' or 'ff_per_operator'.",
        ),
        (
            {"network": "ff_per_operator"},
            "network = 'ff_per_operator' needs a schedule of several operators, and obs_conf = 'full_obs' has one; "
            "take 'ff'.",
        ),
        (
            {"network": "ff_per_operator", "obs_conf": "every_4th_fixed"},
            "network = 'ff_per_operator' needs a schedule of several operators, and obs_conf = 'every_4th_fixed' has one; ",
        ),
        (
            {"start": "truth", "lag": 2},
            "start = 'truth' knows the state at the observation only, and lag = 2 starts before it; take lag = 0, or "
            "start = 'climatology'.",
        ),
        (
            {"start": "first_observation", "analysis": "hybrid"},
            "start = 'first_observation' knows the state at the observation only, and lag = 3 starts before it; ",
        ),
        (
            {"start": "first_observation", "network": "ff", "obs_conf": UNKNOWN},
            f"start = 'first_observation' needs observations of the state itself, and obs_conf = '{UNKNOWN}' has others; "
            "take 'climatology'.",
        ),
        (
            {"analysis": "recurrent", "taper_length": 3.0},
            "taper_length = 3 is not used by analysis = 'recurrent'; leave it out.",
        ),
        (
            {"analysis": "extended", "m": 1, "lag": 10, "growth": 21, "cycles": 3000},
            "growth · lag = 210 must be at most 200, the cycles that are not scored.",
        ),
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


@pytest.mark.parametrize("option", [{"growth": 10}, {"drift": 0.5}])
def test_what_only_a_lag_uses_is_refused_without_one(option):
    name, value = next(iter(option.items()))
    with pytest.raises(ParameterError, match=rf"^{name} = {value!r} does nothing without a lag; leave it out, or take"):
        configure("l96_conv", analysis="hybrid", lag=0, **option)


@pytest.mark.parametrize("option", [{"obs_conf": "full_obs"}, {"noise": 2.5}, {"step_size": 0.05}])
def test_a_setting_beside_many_is_refused(option):
    name, value = next(iter(option.items()))
    with pytest.raises(
        ParameterError, match=rf"^{name} = {value!r} would be ignored: settings = 48 draw theirs; leave it"
    ):
        configure("l96_any", **option)
    assert configure("l96_any", settings=0, **option).settings == 0


def test_a_first_observation_of_something_else_is_no_start(monkeypatch):
    def squares(channels, sites):
        return ObservationModel(torch.ones(1, channels, sites, dtype=torch.bool), torch.square)

    monkeypatch.setitem(OBS_CONFS, "squares", squares)
    sentence = (
        r"^start = 'first_observation' needs observations of the state itself, and obs_conf = 'squares' has others; "
    )
    with pytest.raises(ParameterError, match=sentence):
        configure(start="first_observation", obs_conf="squares")
    assert configure(start="truth", obs_conf="squares", analysis="hybrid", lag=0).obs_conf == "squares"


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
    with pytest.raises(ParameterError, match=r"^experiment = 'l97' is not known; known: l96_ff, l96_conv, "):
        configure("l97")


# ---- layers


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_preset_of_every_analysis_is_its_layers(experiment):
    of_many = "settings" in EXPERIMENTS[experiment]  # which have an obs_conf each
    for analysis, preset, obs_conf in product(ANALYSES, PRESETS, [None] if of_many else OBS_CONFS):
        layers = [ANALYSIS_DEFAULTS[analysis], PRESETS[preset][analysis], EXPERIMENTS[experiment]]
        layers.append(STARTS.get((experiment, analysis), {}))
        expected = {name: field.default for name, field in Experiment.model_fields.items()}
        for layer in layers:
            expected |= layer
        requested = {"analysis": analysis, "preset": preset, "obs_conf": obs_conf}
        kalman = analysis in ("hybrid", "covariant", "extended")
        senseless = obs_conf == UNKNOWN and (kalman or expected["network"] == "conv")
        if senseless:
            with pytest.raises(ParameterError, match=r"^(analysis = '\w+' needs|network = 'conv' treats) [^\n]+\.$"):
                configure(experiment, **requested)
        else:
            chosen = configure(experiment, **requested)
            given = {name: value for name, value in requested.items() if value is not None}
            assert chosen.model_dump() == expected | {"experiment": experiment} | given


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs_by_its_name_alone(experiment):
    chosen = configure(experiment)
    assert chosen.experiment == experiment
    assert chosen.preset == "quick"
    assert {name: getattr(chosen, name) for name in EXPERIMENTS[experiment]} == EXPERIMENTS[experiment]


def test_the_experiments_are_those_announced():
    systems = {name: configure(name).system for name in EXPERIMENTS}
    assert (
        systems.items()
        >= {"l96_ff": "l96", "l96_conv": "l96", "ks": "ks", "misspec": "two_level", "vl20": "vl20"}.items()
    )
    assert configure("misspec").forecast_model == Lorenz96()
    assert configure("ks").step_size == 1.0
    assert configure("vl20").obs_conf == "every_4th_dim_partial_obs"
    assert configure("unknown_operators").obs_conf == UNKNOWN
    networks = {name: configure(name).network for name in ("l96_ff", "l96_conv", "ks", "misspec", "vl20")}
    assert networks == {"l96_ff": "ff", "l96_conv": "conv", "ks": "conv", "misspec": "conv", "vl20": "conv"}


def test_what_is_asked_for_beats_experiment_beats_preset_beats_analysis_beats_default(monkeypatch):
    def width(**options):
        return configure("l96_conv", **options).hidden_size

    assert width() == Experiment.model_fields["hidden_size"].default
    monkeypatch.setitem(ANALYSIS_DEFAULTS["original"], "hidden_size", 2)
    assert width() == 2
    monkeypatch.setitem(PRESETS["quick"]["original"], "hidden_size", 3)
    assert width() == 3
    assert width(preset="cpu") == 2
    monkeypatch.setitem(EXPERIMENTS["l96_conv"], "hidden_size", 4)
    assert width() == width(preset="cpu") == 4
    assert width(hidden_size=5) == 5
    assert width(hidden_size=None) == 4  # None: whatever the experiment says


def test_where_the_hybrid_starts_is_the_experiments_and_the_hybrids_alone(monkeypatch):
    def start(**options):
        chosen = configure("misspec", **options)
        return chosen.inflation, chosen.lag

    monkeypatch.setitem(STARTS, ("misspec", "hybrid"), {"inflation": 1.35, "lag": 2})
    hybrid = {"analysis": "hybrid"}
    assert start(**hybrid) == (1.35, 2)
    assert start(**hybrid, preset="cpu", inflation=1.1) == (1.1, 2)
    assert start() == start(analysis="original") == (1.0, 0)
    assert configure("l96_conv", **hybrid).inflation == ANALYSIS_DEFAULTS["hybrid"]["inflation"]
    # Also for an experiment that is a hybrid by itself.
    monkeypatch.setitem(EXPERIMENTS["misspec"], "analysis", "hybrid")
    assert start() == (1.35, 2)
    assert start(analysis="original") == (1.0, 0)


def test_the_starts_are_of_known_experiments():
    assert {experiment for experiment, _ in STARTS} <= EXPERIMENTS.keys()
    assert {analysis for _, analysis in STARTS} <= set(ANALYSES)


@pytest.mark.parametrize(
    "options",
    [
        {"dt": 0.025},
        {"dt": 0.1},
        {"network": "ff"},
        {"network": "ff_per_operator", "obs_conf": "partial_obs"},
        {"network": "ff", "obs_conf": UNKNOWN},
        {"inflation": 0.5},
        {"inflation": 2},
        {"analysis": "hybrid", "taper_length": 3},
        {"analysis": "hybrid", "drift": -1.5},
        {"start": "truth"},
        {"start": "first_observation", "obs_conf": "every_4th_dim_partial_obs"},
        {"loss": "ss_analysis"},
        {"loss": "clean_analysis"},
        {"system": "two_level", "dt": 0.05},
        {"system": "ks", "step_size": 0.5},
        {"settings": 3, "network": "ff"},
    ],
    ids=str,
)
def test_every_option_may_be_set(options):
    chosen = configure("l96_conv", **options)
    assert {name: getattr(chosen, name) for name in options} == options


def test_a_step_of_the_models_own():
    """The truth keeps its step: what differs is a model error."""
    chosen = configure("l96_conv", dt=0.025)
    assert chosen.forecast_model == Lorenz96(dt=0.025)
    assert configure("l96_conv").forecast_model == Lorenz96()
    assert configure("misspec", dt=0.1).forecast_model == Lorenz96(dt=0.1)


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
        {"obs_conf": "every_4th_fixed"}, {"network": "ff"}, {"loss": "ss_analysis"}, {"loss": "clean_analysis"},
        {"dt": 0.025}, {"start": "truth"}, {"start": "first_observation"}, {"settings": 1}, {"settings": 48},
    ]  # fmt: skip
    names = [configure(**change).name for change in changes]
    assert len(set(names)) == len(names)


def test_the_methods_name_in_the_table():
    methods = {a: configure(analysis=a).method for a in ANALYSES}
    assert methods.pop("original") == "amortized_original"
    assert set(methods.values()) == {"amortized"}
    assert {configure("l96_ff", analysis=a).method for a in ANALYSES} == {"amortized_ff"}
    assert {configure(analysis=a, settings=3).method for a in ANALYSES} == {"amortized_any"}
    assert configure("l96_any").method == "amortized_any"
    # A method that is trained otherwise never competes with those that saw observations alone.
    for loss in ("ss_analysis", "clean_analysis"):
        assert {configure(analysis=a, loss=loss).method for a in ANALYSES} == {f"amortized_{loss}"}


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
