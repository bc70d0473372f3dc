"""What a run may be: every layer in its order, and one clear sentence for every mistake."""

import json
import math
from itertools import product
from typing import ClassVar

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from assim_lib.analyses import ANALYSES, RecurrentAnalysis, register_analysis
from assim_lib.instruments import LinearInstruments
from assim_lib.observations import OBS_CONFS, ObservationModel, register_obs_conf
from assim_lib.setting import Setting
from assim_lib.study.results import TAUGHT
from assim_lib.systems import Lorenz96, register_system
from assim_lib.training.build import build_filter
from assim_lib.training.experiment import Experiment, ParameterError, allowed, configure, options
from assim_lib.training.presets import EXPERIMENTS, PRESETS

UNKNOWN = "unstructured_partial_obs"


def sentence_about(experiment="l96_conv", /, **requested) -> str:
    """What is said about a mistake: one sentence, and nothing above it."""
    with pytest.raises(ParameterError) as caught:
        configure(experiment, **requested)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert caught.value.__suppress_context__ or not caught.value.__context__  # no second traceback above it
    assert caught.value._render_traceback_() == [f"ParameterError: {sentence}"]
    return sentence


# ---- mistakes


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "test_dropout": ["false", 0],
        "tendency": [1],
        "lr": ["1e-3", math.inf],
        "noise": [-1, 0.0, math.nan],
        "m": [0, 10.0, "10", True, [10]],
        "training_m": [0, 2.0],
        "lag": [-1, 21],
        "leads": [0, 11],
        "dropout": [1.0],
        "restart": [-0.1, 1.1],
        "weight_decay": [-0.1],
        "seed": [-1],
        "analysis": [3],
        "network": [True],
        "obs_conf": [3],
        "preset": ["fast", ["quick"]],
        "loss": ["mse"],
        "start": ["truths"],
        "order": ["randomly"],
        "noise_draws": ["twice"],
        "rates": ["step"],
        "inflation": [0.4, 2.1],
        "taper_length": [0.0],
        "drift": ["1"],
        "dt": [0.0, "0.05"],
        "step_size": [-0.1],
        "clamp": [2.9],
        "n_settings": [-1, True],
    }.items(),
)
def test_a_wrong_type_or_a_value_out_of_range_is_named_with_what_is_allowed(name, values):
    for value in values:
        said = f"{name} = {value!r} (of type {type(value).__name__}) is not allowed; {name} is {allowed(name)}."
        assert sentence_about(**{name: value}) == said


# What is asked for, and how the sentence about it begins.
MISTAKES = [
    ({"noize": 1.0}, "Unknown parameter `noize`: did you mean `noise`? Known parameters: preset, system, obs_conf, "),
    ({"xyzzy": 1.0}, "Unknown parameter `xyzzy`: Known parameters: "),
    ({"experiment": "l96_conv"}, "Unknown parameter `experiment`: "),
    ({"step_size": 1000.0}, "step_size = 1000 is 20000 integration steps of 0.05, and may be at most 10000"),
    (
        {"segments": 10**6, "cycles": 10**8},
        "segments = 1000000 of cycles = 100000000 make 4.0e+15 numbers, and at most",
    ),
    ({"pool": 10**6, "m": 10**4}, "pool = 1000000 of m = 10000 make 4.0e+11 numbers, and at most 2e+09 may be"),
    ({"m": 0}, "m = 0 (of type int) is not allowed; m is the ensemble size, a whole number from 1 to 10,000."),
    ({"analysis": "hybird"}, "analysis = 'hybird' is not registered (did you mean 'hybrid'?); known: "),
    ({"network": "cnn"}, "network = 'cnn' is not registered; known: conv, conv_glu, ff, ff_per_operator, original, "),
    ({"obs_conf": "ful_obs"}, "obs_conf = 'ful_obs' is not registered (did you mean 'full_obs'?); known: full_obs"),
    ({"system": "l95"}, "system = 'l95' is not registered (did you mean 'l96'?); known: "),
    ({"dt": 0.03}, "step_size = 0.1 must be a positive multiple of the integration step 0.03."),
    # Two steps of the model, but no whole one of the truth.
    ({"system": "ks", "dt": 0.05}, "step_size = 0.1 must be a positive multiple of the integration step 0.5."),
    ({"step_size": 0.07}, "step_size = 0.07 must be a positive multiple of the integration step 0.05."),
    ({"m": 1}, "m = 1 does not work with analysis = 'original'; it needs ensemble covariances; take m ≥ 2, or "),
    ({"m": 1, "analysis": "hybrid"}, "m = 1 does not work with analysis = 'hybrid'; it needs"),
    ({"training_m": 1}, "training_m = 1 does not work with analysis = 'original'; it needs"),
    (
        {"m": 2, "analysis": "extended"},
        "m = 2 does not work with analysis = 'extended'; it carries a covariance in place",
    ),
    ({"kernel": 4}, "kernel = 4 must be odd."),
    ({"batch": 33, "pool": 32}, "batch = 33 must be at most pool = 32."),
    ({"test_dropout": True, "dropout": 0.0}, "test_dropout = True needs dropout > 0, and dropout = 0.0."),
    ({"m": 1, "analysis": "recurrent", "inflation": 1.1}, "inflation = 1.1 does nothing to m = 1; set it to 1."),
    ({"cycles": 10, "window": 10}, "cycles = 10 must be more than window + leads - 1 + lag_warmup · lag = 10."),
    ({"cycles": 12, "window": 10, "leads": 3}, "cycles = 12 must be more than window + leads - 1 + lag_warmup · lag"),
    ({"leads": 2, "loss": "ss_analysis"}, "leads = 2 score forecasts, and loss = 'ss_analysis' has none; set it to 1."),
    (
        {"analysis": "extended", "lag": 10, "lag_warmup": 21, "cycles": 3000},
        "lag_warmup · lag = 210 must be at most 200, the cycles that are not scored.",
    ),
    ({"n_settings": 3, "system": "vl20"}, "n_settings = 3 are those of system = 'l96' and its own integration step; "),
    ({"n_settings": 3, "dt": 0.025}, "n_settings = 3 are those of system = 'l96' and its own integration step; "),
    (
        {"n_settings": 3, "analysis": "gated", "network": "ff_per_operator", "obs_conf": "partial_obs"},
        "network = 'ff_per_operator' has a part for each operator, and n_settings = 3 have others each; take 'conv",
    ),
    (
        {"n_settings": 48, "analysis": "hybrid", "seed": 429_497},
        "seed = 429497 leaves no seeds for the trajectories of n_settings = 48; take one below",
    ),
    (
        {"n_settings": 3, "analysis": "original"},
        "n_settings = 3 have many masks, and the features of analysis = 'original' are those of one; take 'hybrid', ",
    ),
    ({"network": "ff_per_operator"}, "network = 'ff_per_operator' needs a schedule of several operators, and "),
    ({"network": "ff_per_operator", "obs_conf": "every_4th_fixed"}, "network = 'ff_per_operator' needs a schedule of "),
    (
        {"start": "truth", "lag": 2},
        "start = 'truth' knows the state at the observation only, and lag = 2 starts before",
    ),
    ({"start": "first_observation", "noise_draws": "each"}, "noise_draws = 'each' knows no first observation; take "),
]
UNKNOWN_OPERATORS = [
    ({"analysis": "hybrid", "lag": 0}, "analysis = 'hybrid' needs operators it may use, and some of obs_conf = "),
    ({"network": "conv"}, "network = 'conv' treats all sites alike, and the unknown instruments of obs_conf = "),
    (
        {"start": "first_observation"},
        "start = 'first_observation' needs observations of the state itself, and obs_conf",
    ),
    ({"order": "random"}, "order = 'random' with noise_draws = 'once' needs operators that are known, "),
    ({"noise_draws": "each"}, "order = 'schedule' with noise_draws = 'each' needs operators that are known, "),
]
MISTAKES += [
    ({"analysis": "recurrent", "network": "ff", "obs_conf": UNKNOWN, **requested}, beginning)
    for requested, beginning in UNKNOWN_OPERATORS
]


@pytest.mark.parametrize(("requested", "beginning"), MISTAKES, ids=str)
def test_a_mistake_is_one_sentence(requested, beginning):
    assert sentence_about(**requested).startswith(beginning)


def test_an_unknown_experiment_is_one_sentence():
    assert sentence_about("l97").startswith("experiment = 'l97' is not known; known: l96_ff, l96_conv, ")


@pytest.mark.parametrize(
    ("analysis", "name", "value"),
    [
        ("original", "drift", 0.5),
        ("original", "other_member", False),
        ("gated", "tendency", False),
        ("gated", "sees_gradient", True),
        ("gated", "sees_window", True),
        ("recurrent", "band", 1),
        ("recurrent", "taper_length", 3.0),
        ("covariant", "drift", 0.5),
        ("extended", "band", 2),
    ],
)
def test_an_option_that_an_analysis_does_not_use_is_refused(analysis, name, value):
    default = Experiment.model_fields[name].default
    expected = f"{name} = {value!r} is not used by analysis = {analysis!r}; leave it out, or set it to {default!r}."
    assert sentence_about(analysis=analysis, **{name: value}) == expected
    assert getattr(configure(analysis=analysis, **{name: default}), name) == default


@pytest.mark.parametrize("option", [{"lag_warmup": 10}, {"first_lag": 2}, {"drift": 0.5}], ids=str)
def test_what_only_a_lag_uses_is_refused_without_one(option):
    ((name, value),) = option.items()
    said = sentence_about(analysis="hybrid", lag=0, **option)
    assert said == f"{name} = {value!r} does nothing without a lag; leave it out, or take lag ≥ 1."


def test_a_lag_grows_in_training_up_to_that_of_the_filter():
    assert sentence_about(analysis="recurrent", lag=2, first_lag=3) == "first_lag = 3 must be at most lag = 2."
    growing = configure(analysis="recurrent", lag=4, first_lag=2, updates=10)
    assert [growing.training_lag(update) for update in range(11)] == [2, 2, 2, 2, 3, 3, 3, 4, 4, 4, 4]
    assert {configure(analysis="recurrent", lag=4, updates=10).training_lag(update) for update in range(11)} == {4}


def test_a_gradient_needs_a_lag_and_operators():
    said = sentence_about(analysis="recurrent", lag=0, sees_gradient=True)
    assert said == "sees_gradient = True does nothing without a lag; leave it out, or take lag ≥ 1."
    said = sentence_about(analysis="recurrent", network="ff", lag=1, sees_gradient=True, obs_conf=UNKNOWN)
    assert said == (
        "sees_gradient = True needs operators that may be used, and some of "
        f"obs_conf = {UNKNOWN!r} are unknown; set it to False."
    )
    experiment = configure(analysis="recurrent", lag=1, sees_gradient=True)
    assert experiment.name.startswith("l96_conv-full_obs-dt0.1-s1-recurrent-lag1-gradient-m")
    assert experiment.label == "recurrent, lag 1, gradient"


def test_the_gradient_of_the_window_needs_that_of_the_newest_and_errors_that_stay():
    said = sentence_about(analysis="recurrent", lag=1, sees_window=True)
    assert said == "sees_window = True adds to sees_gradient = True; set both, or neither."
    both = {"analysis": "recurrent", "lag": 1, "sees_gradient": True, "sees_window": True}
    said = sentence_about(**both, sees_error=True)
    assert (
        said == "sees_window = True needs errors that stay the same, and sees_error = True is for others; choose one."
    )
    assert "-recurrent-lag1-gradient-window-m" in configure(**both).name
    assert configure(**both).label == "recurrent, lag 1, gradient of the window"


@pytest.mark.parametrize("option", [{"obs_conf": "full_obs"}, {"noise": 2.5}, {"step_size": 0.05}], ids=str)
def test_a_setting_beside_many_is_refused(option):
    ((name, value),) = option.items()
    beginning = f"{name} = {value!r} would be ignored: n_settings = 48 draw theirs; leave it"
    assert sentence_about("l96_any", **option).startswith(beginning)
    assert configure("l96_any", n_settings=0, **option).n_settings == 0


def test_a_first_observation_of_something_else_is_no_start(readers_cell):
    @register_obs_conf("squares")
    def squares(channels, sites):
        return ObservationModel(torch.ones(1, channels, sites, dtype=torch.bool), torch.square)

    assert "obs_conf = 'squares' has others" in sentence_about(start="first_observation", obs_conf="squares")
    assert configure(start="truth", obs_conf="squares", analysis="hybrid", lag=0).obs_conf == "squares"


def test_windows_of_a_ring_need_a_model_and_an_operator_that_can_be_split(readers_cell):
    @register_system
    class Large(Lorenz96):
        name = "large"

        def __init__(self):
            super().__init__(sites=200)

    @register_system
    class Forced(Large):
        name, homogeneous = "forced", False

        def tendency(self, x):
            return super().tendency(x) + torch.arange(200) / 200

    @register_obs_conf("weighted")
    def weighted(channels, sites):
        return LinearInstruments(np.eye(sites)[:, None] + 0.1, np.ones(sites)).model()

    def said(**options):
        return sentence_about(analysis="extended", **options)

    assert "its model, 'forced', must be homogeneous and must not depend on time; take " in said(system="forced")
    assert said(system="large", obs_conf="weighted").endswith("has an operator of the whole ring; take 'hybrid'.")
    assert configure(analysis="extended", system="large").system == "large"
    assert configure(analysis="extended", obs_conf="weighted").obs_conf == "weighted"  # forty sites are no windows
    assert configure(analysis="hybrid", system="forced", obs_conf="weighted").system == "forced"


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert sentence_about(device="cuda") == "device = 'cuda' asks for a GPU, and there is none; use 'auto' or 'cpu'."
    assert configure(device="auto").torch_device == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert configure(device="cuda").torch_device == configure(device="auto").torch_device == torch.device("cuda")
    assert configure(device="cpu").torch_device == torch.device("cpu")


# ---- layers


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_preset_of_every_analysis_is_its_layers(experiment):
    for (name, analysis), preset in product(ANALYSES.items(), PRESETS):
        expected = {option: field.default for option, field in Experiment.model_fields.items()}
        for layer in (
            PRESETS[preset],
            analysis.defaults,
            analysis.presets.get(preset, {}),
            EXPERIMENTS[experiment],
            analysis.experiments.get(experiment, {}),
            analysis.experiments.get((experiment, preset), {}),
            {"experiment": experiment, "analysis": name, "preset": preset},
        ):
            expected |= layer
        if expected["obs_conf"] == UNKNOWN and analysis.needs_operator:
            assert "needs operators it may use" in sentence_about(experiment, analysis=name, preset=preset)
        elif expected["n_settings"] and name == "original":
            assert sentence_about(experiment, analysis=name, preset=preset).startswith("n_settings = 48 have")
        else:
            assert configure(experiment, analysis=name, preset=preset).model_dump() == expected


def test_every_analysis_can_be_observed_with_every_configuration_of_known_instruments():
    for analysis, obs_conf in product(ANALYSES, OBS_CONFS):
        if obs_conf != UNKNOWN:
            assert configure(analysis=analysis, obs_conf=obs_conf).obs_conf == obs_conf


def test_the_experiments_are_those_announced():
    chosen = {name: configure(name) for name in EXPERIMENTS}
    assert all(
        (e.experiment, e.preset) == (name, "quick")
        and e.model_dump().items() >= (EXPERIMENTS[name] | ANALYSES.find(e.analysis).experiments.get(name, {})).items()
        for name, e in chosen.items()
    )
    systems = {"l96_ff": "l96", "l96_conv": "l96", "ks": "ks", "misspec": "two_level", "vl20": "vl20"}
    assert {name: chosen[name].system for name in systems} == systems
    assert {n: chosen[n].network.startswith("ff") for n in systems} == {n: n == "l96_ff" for n in systems}
    assert chosen["misspec"].forecast_model == Lorenz96()
    assert chosen["ks"].step_size == 1.0
    assert chosen["vl20"].obs_conf == "every_4th_dim_partial_obs"
    assert chosen["unknown_operators"].obs_conf == UNKNOWN


@pytest.mark.parametrize(
    ("experiment", "recipe"),
    [
        ("l96_conv", {"window": 40, "batch": 64, "lr": 2.15e-3, "dropout": 0.2, "kernel": 5, "memory": 6}),
        ("ks", {"window": 40, "batch": 32, "lr": 1.34e-3, "dropout": 0.1, "kernel": 7, "memory": 4}),
        ("l96_ff", {"window": 80, "batch": 128, "lr": 5e-3, "dropout": 0.1, "hidden_size": 250, "memory": 6}),
    ],
)
def test_the_preset_paper_is_what_was_published(experiment, recipe):
    chosen = configure(experiment, analysis="original", preset="paper")
    assert chosen.model_dump().items() >= recipe.items()
    assert (chosen.adamw_lr, chosen.pool, chosen.updates) == (chosen.lr, chosen.batch, 500 * 94)


@pytest.mark.usefixtures("readers_cell")
def test_an_option_that_an_analysis_invents_is_one_sentence():
    @register_analysis("inventive")
    class Inventive(RecurrentAnalysis):
        uses = ("inflation", "strength")

    said = sentence_about(analysis="inventive")
    assert said.startswith("analysis = 'inventive' uses 'strength', and no option of an experiment is called so; name")


def test_an_analysis_names_experiments_and_presets_that_there_are():
    names = {
        key if isinstance(key, tuple) else (key, "quick") for kind in ANALYSES.values() for key in kind.experiments
    }
    assert names
    assert names <= set(product(EXPERIMENTS, PRESETS))
    assert {preset for kind in ANALYSES.values() for preset in kind.presets} <= PRESETS.keys()


def test_what_is_asked_for_beats_start_beats_experiment_beats_analysis_beats_preset_beats_default(
    readers_cell, monkeypatch
):
    def width(**requested):
        return configure("l96_conv", analysis="own", **requested).hidden_size

    @register_analysis("own")
    class Own(RecurrentAnalysis):
        defaults = {}
        presets = {}
        experiments = {}

    assert width() == Experiment.model_fields["hidden_size"].default
    monkeypatch.setitem(PRESETS["quick"], "hidden_size", 2)
    assert width() == 2
    Own.defaults = {"hidden_size": 3}
    assert width() == width(preset="cpu") == 3
    Own.presets = {"quick": {"hidden_size": 4}}
    assert (width(), width(preset="cpu")) == (4, 3)
    monkeypatch.setitem(EXPERIMENTS["l96_conv"], "hidden_size", 5)
    assert width() == 5
    Own.experiments = {"l96_conv": {"hidden_size": 6}, ("l96_conv", "paper"): {"hidden_size": 8}}
    assert width() == width(preset="cpu") == 6
    assert width(preset="paper") == 8
    assert configure("l96_conv", analysis="hybrid").hidden_size == 5  # where an analysis starts, it alone starts
    assert width(hidden_size=7) == 7
    assert width(hidden_size=None) == 6  # None: whatever the experiment says
    # Also of an experiment that has the analysis by itself.
    monkeypatch.setitem(EXPERIMENTS["l96_conv"], "analysis", "own")
    assert configure("l96_conv").hidden_size == 6


@pytest.mark.parametrize(
    "requested",
    [
        {"dt": 0.025},
        {"network": "ff_per_operator", "obs_conf": "partial_obs"},
        {"network": "ff", "obs_conf": UNKNOWN, "order": "schedule"},
        {"inflation": 0.5},
        {"inflation": 2},
        {"tendency": False},
        {"analysis": "gated", "other_member": False},
        {"analysis": "hybrid", "taper_length": 3},
        {"analysis": "hybrid", "drift": -1.5},
        {"start": "truth"},
        {"start": "first_observation", "obs_conf": "every_4th_dim_partial_obs"},
        {"loss": "ss_analysis"},
        {"loss": "clean_analysis"},
        {"leads": 3, "restart": 1.0, "rates": "steps", "weight_decay": 0.0},
        {"order": "random", "noise_draws": "each", "start": "truth"},
        {"training_m": 5, "m": 20},
        {"system": "ks", "step_size": 0.5},
        {"n_settings": 3, "network": "ff", "analysis": "gated"},
    ],
    ids=str,
)
def test_every_option_may_be_set(requested):
    chosen = configure("l96_conv", **requested)
    assert {name: getattr(chosen, name) for name in requested} == requested


@pytest.mark.parametrize(("experiment", "dt"), [("l96_conv", 0.025), ("misspec", 0.1)])
def test_a_step_of_the_models_own(experiment, dt):
    """The truth keeps its step: what differs is a model error."""
    assert configure(experiment, dt=dt).forecast_model == Lorenz96(dt=dt)
    assert configure(experiment).forecast_model == Lorenz96()


# ---- an analysis of a reader's own


@pytest.fixture
def own_analysis(readers_cell):
    @register_analysis("own")
    class Own(RecurrentAnalysis):
        uses = ("band",)
        defaults = {"hidden_size": 7, "m": 3}
        presets = {"cpu": {"hidden_size": 9}}
        maximum_members = 3

        @classmethod
        def allowed_members(cls):
            return "it has room for three"

        @classmethod
        def problems(cls, options):
            if options.band > options.hidden_size:
                yield f"band = {options.band} must be at most hidden_size = {options.hidden_size}."


def test_what_a_reader_registers_is_among_what_is_allowed(own_analysis):
    assert "or 'own'." in sentence_about(analysis=3)
    said = sentence_about(analysis="hybrid", lag=0, network="ff", obs_conf=UNKNOWN)
    assert said.endswith("take 'original', 'gated', 'recurrent' or 'own'.")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_sizes_an_analysis_that_a_reader_registers(own_analysis, preset):
    chosen = configure(analysis="own", preset=preset, band=1)
    assert (chosen.hidden_size, chosen.m, chosen.band) == (9 if preset == "cpu" else 7, 3, 1)
    assert chosen.model_dump().items() >= PRESETS[preset].items()


@pytest.mark.parametrize(
    ("requested", "sentence"),
    [
        ({"inflation": 1.1}, "inflation = 1.1 is not used by analysis = 'own'; leave it out, or set it to 1.0."),
        ({"band": 8}, "band = 8 must be at most hidden_size = 7."),
        ({"m": 4}, "m = 4 does not work with analysis = 'own'; it has room for three."),
    ],
    ids=str,
)
def test_what_an_analysis_says_of_itself_decides_what_is_refused(own_analysis, requested, sentence):
    assert sentence_about(analysis="own", **requested) == sentence


@pytest.fixture
def with_options(readers_cell):
    @register_analysis("mine")
    class Mine(RecurrentAnalysis):
        own: ClassVar[dict] = {"most": 1.0, "ways": 2, "kind": "soft"}
        presets: ClassVar[dict] = {"cpu": {"ways": 5}}

        def __init__(self, *args, most, ways, kind, **kwargs):
            super().__init__(*args, **kwargs)
            self.told = most, ways, kind


def test_an_analysis_has_options_of_its_own(with_options):
    """Asked for like any other, complete in the record, and passed to its constructor."""
    chosen = configure(analysis="mine", m=1, most=0.5, kind="hard")
    assert chosen.own == {"most": 0.5, "ways": 2, "kind": "hard"}
    assert build_filter(chosen).analysis.told == (0.5, 2, "hard")
    assert chosen.changed(ways=3).own == {"most": 0.5, "ways": 3, "kind": "hard"}
    assert configure(analysis="mine", m=1, own={"most": 2}).own == {"most": 2.0, "ways": 2, "kind": "soft"}
    assert Experiment.model_validate_json(chosen.model_dump_json()) == chosen
    assert configure(analysis="mine", m=1, preset="cpu", most=3).own == {"most": 3.0, "ways": 5, "kind": "soft"}
    assert configure(analysis="recurrent", m=1).own == {}


@pytest.mark.parametrize(
    ("requested", "sentence"),
    [
        ({"analysis": "mine", "most": "much"}, "most = 'much' (of type str) is not allowed; most is of type float."),
        ({"analysis": "mine", "ways": True}, "ways = True (of type bool) is not allowed; ways is of type int."),
        (
            {"analysis": "mine", "own": {"mst": 1.0}},
            "own = 'mst' is no option of analysis = 'mine', which has 'most', '",
        ),
        ({"own": {"most": 1.0}}, "own = 'most' is no option of analysis = 'recurrent', which has none of its own."),
        ({"most": 1.0}, "Unknown parameter `most`: "),
        ({"analysis": "mine", "own": 3, "most": 0.5}, "own = 3 (of type int) is not allowed; own is options of"),
        ({"own": 3}, "own = 3 (of type int) is not allowed; own is options of an analysis of your own, by name."),
    ],
    ids=str,
)
def test_options_of_its_own_that_cannot_be_are_one_sentence(with_options, requested, sentence):
    assert sentence_about(**{"analysis": "recurrent", "m": 1, **requested}).startswith(sentence)


def test_options_of_its_own_have_names_of_their_own(readers_cell):
    @register_analysis("taken")
    class Taken(RecurrentAnalysis):
        own: ClassVar[dict] = {"lag": 3}

    said = sentence_about(analysis="taken", m=1)
    assert said == "analysis = 'taken' has 'lag' of its own, which every experiment has; call it otherwise."


# ---- the object


@pytest.mark.parametrize("analysis", ANALYSES)
def test_an_experiment_survives_json_and_does_not_change(analysis):
    chosen = configure(analysis=analysis, noise=2, seed=3, step_size=0.15)
    assert Experiment.model_validate_json(chosen.model_dump_json()) == chosen
    assert Experiment.model_validate_json(json.dumps(chosen.model_dump())) == chosen
    assert chosen.setting == Setting("l96", "full_obs", 0.15, 2.0)
    with pytest.raises(ValidationError):
        chosen.noise = 1.0
    assert chosen.changed(noise=1).noise == 1.0
    assert chosen.changed(seed=np.int64(3)).seed == 3
    with pytest.raises(ParameterError, match=r"^noise = -1 \(of type int\) is not allowed; [^\n]+\.$"):
        chosen.changed(noise=-1)
    with pytest.raises(ParameterError, match=r"^Unknown parameter `nois`: did you mean `noise`\? "):
        chosen.changed(nois=2.0)


def test_names_tell_runs_apart():
    changes = [
        {}, {"seed": 1}, {"m": 5}, {"analysis": "hybrid"}, {"analysis": "hybrid", "lag": 5}, {"noise": 0.5},
        {"step_size": 0.2}, {"obs_conf": "every_4th_fixed"}, {"network": "ff"}, {"network": "conv"},
        {"loss": "ss_analysis"}, {"loss": "clean_analysis"}, {"dt": 0.025}, {"start": "truth"},
        {"start": "first_observation"}, {"network": "original_early"},
        {"analysis": "hybrid", "n_settings": 1}, {"analysis": "hybrid", "n_settings": 48},
    ]  # fmt: skip
    names = [configure(**change).name for change in changes]
    names += [configure("l96_conv", system=system).name for system in ("vl20", "two_level")]
    assert len(set(names)) == len(names)
    chosen = configure(analysis="recurrent", network="ff", m=1)
    assert chosen.name == "l96_conv-full_obs-dt0.1-s1-recurrent-ff-m1-seed0"
    assert chosen.label == "recurrent ff, lag 0"
    assert configure(analysis="original", network="original_early").label == "original early, lag 0"


def test_the_methods_name_in_the_table():
    methods = {a: configure(analysis=a).method for a in ANALYSES}
    assert methods.pop("original") == methods.pop("gated") == "amortized_original"
    assert set(methods.values()) == {"amortized"}
    assert {configure("l96_ff", analysis=a).method for a in ANALYSES} == {"amortized_ff"}
    assert {configure("l96_any", analysis=a).method for a in ANALYSES if a != "original"} == {"amortized_any"}
    # A method that is trained otherwise never competes with those that saw observations alone.
    for loss in ("ss_analysis", "clean_analysis"):
        assert {configure(analysis=a, loss=loss).method for a in ANALYSES} == {f"amortized_{loss}"}
    assert configure(loss="clean_analysis").method == TAUGHT


def test_the_options_are_all_fields_but_the_experiments_name():
    assert options() == [name for name in configure().model_dump() if name != "experiment"]


def test_the_name_in_a_record_cannot_lead_out_of_the_project():
    """Files are named after it."""
    with pytest.raises(ParameterError, match=r"^experiment = '\.\./x' is not known; known: l96_ff, "):
        configure().changed(experiment="../x")
    assert sentence_about(lag=5, first_lag=1, updates=4).startswith("updates = 4 are too few for the lag to grow from ")
    assert sentence_about(pretrained="../x").startswith("pretrained = '../x' (of type str) is not allowed; ")


def test_a_gradient_needs_a_model_of_fixed_steps(readers_cell):
    @register_system
    class Adaptive(Lorenz96):
        name, method = "adaptive", "dopri5"

    said = sentence_about(analysis="recurrent", lag=1, sees_gradient=True, system="adaptive")
    assert "that of 'adaptive' is method = 'dopri5'" in said


def test_what_fits_no_memory_is_refused():
    assert sentence_about(analysis="recurrent", hidden_size=10000, kernel=999).startswith("hidden_size = 10000 with")
    assert "and memory = 1000 make" in sentence_about(analysis="recurrent", m=3000, memory=1000, batch=2)
    assert sentence_about(network="original_early", blocks=0).startswith("blocks = 0 leaves network =")
