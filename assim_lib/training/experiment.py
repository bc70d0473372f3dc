"""The named experiments, their options, and the presets that size a run.

An :class:`Experiment` is one frozen, validated object: everything that determines a run. It is built by
:func:`configure` from layers, each overriding the one before: the field defaults, what the ``preset`` and the chosen
``analysis`` set, what the named experiment sets, and what the caller asks for. Nothing is
computed before the whole object is valid, and every mistake is answered by one sentence.
"""

from difflib import get_close_matches
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from assim_lib.analyses import ANALYSES, Analysis
from assim_lib.mistakes import Mistake
from assim_lib.networks import NETWORKS
from assim_lib.registry import one_of
from assim_lib.setting import Setting
from assim_lib.systems import Dynamics, forecast_model_of
from assim_lib.training.presets import EXPERIMENTS, PRESETS
from assim_lib.training.rules import problems

Preset = Literal["quick", "cpu", "paper"]


class ParameterError(Mistake):
    """A parameter that cannot be used; its message is one sentence naming it, what came and what is allowed."""


def options() -> list[str]:
    """The options a caller may set: every field but the experiment's name."""
    return [name for name in Experiment.model_fields if name != "experiment"]


def option(default: Any, description: str, **bounds: Any) -> Any:
    """A field whose description says, in words, which values are allowed."""
    return Field(default, description=description, **bounds)


def allowed(name: str) -> str:
    """What an option may be, in words; of an analysis and a network, with all names that are registered by now."""
    registered = {"analysis": ANALYSES, "network": NETWORKS}.get(name)
    said = str(Experiment.model_fields[name].description)
    return said if registered is None else f"{said}: {one_of(registered)}"


class Experiment(BaseModel):
    """Everything that determines a run. The description of each field says what it may be."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    experiment: str = option("l96_conv", "the name of an experiment")
    preset: Preset = option(
        "quick", "'quick' (about a minute), 'cpu' (at most two hours on 2 cores) or 'paper' (a GPU)"
    )
    system: str = option("l96", "the name of a system")

    obs_conf: str = option("full_obs", "the name of a registered observation configuration")
    step_size: float = option(
        0.1, "the observation interval, a positive multiple of the integration step, at most 10,000 of it", gt=0
    )
    dt: float | None = option(
        None, "the forecast model's integration step, a number > 0, at most 10⁶, or None for its own", gt=0, le=1e6
    )
    noise: float = option(1.0, "the observation error's standard deviation, a number from 10⁻⁶ to 10⁶", ge=1e-6, le=1e6)

    analysis: str = option("original", "the name of an analysis")
    network: str = option("conv", "the name of a network")
    m: int = option(10, "the ensemble size, a whole number from 1 to 10,000", ge=1, le=10000)
    training_m: int | None = option(
        None, "the ensemble size while training, a whole number from 1 to 10,000, or None for the same", ge=1, le=10000
    )
    lag: int = option(
        0, "cycles between the corrected state and the observation, a whole number from 0 to 20", ge=0, le=20
    )
    lag_warmup: int = option(
        0,
        "cycles after which the lag of a new filter grows by one, a whole number from 0 to 200 (0: full-grown at once)",
        ge=0,
        le=200,
    )
    first_lag: int | None = option(
        None,
        "the lag that training begins with, a whole number from 1 to 20; it grows by one in equal parts of the updates",
        ge=1,
        le=20,
    )
    hidden_size: int = option(32, "the network's width, a whole number from 1 to 10,000", ge=1, le=10000)
    blocks: int = option(
        3,
        "the number of residual blocks ('original': of hidden layers, two a block), a whole number from 0 to 100",
        ge=0,
        le=100,
    )
    kernel: int = option(5, "the convolution window in sites, an odd number from 1 to 999", ge=1, le=999)
    memory: int = option(6, "memory channels per site, a whole number from 1 to 1,000", ge=1, le=1000)
    band: int = option(0, "reach of the covariance features in sites, a whole number from 0 to 100", ge=0, le=100)
    tendency: bool = option(True, "True or False: whether 'original' sees the tendency")
    other_member: bool = option(
        True, "True or False: whether 'gated' sees another member's forecast where nothing is observed"
    )
    sees_error: bool = option(False, "True or False: whether 'recurrent' sees the standard deviation of the errors")
    sees_gradient: bool = option(
        False, "True or False: whether 'recurrent' sees the gradient that 4D-Var would descend along"
    )
    sees_window: bool = option(
        False, "True or False: whether 'recurrent' sees that gradient of all observations of the lag, beside the newest"
    )
    dropout: float = option(0.0, "the share of hidden channels dropped, a number from 0 to 0.9", ge=0, le=0.9)
    test_dropout: bool = option(False, "True or False: whether dropout stays on at test time")
    inflation: float = option(
        1.0,
        "the factor on the analysis perturbations, a number from 0.5 to 2 ('hybrid' and 'covariant' learn on from it)",
        ge=0.5,
        le=2,
    )
    taper_length: float = option(
        5.0,
        "the reach of the localization that 'hybrid', 'covariant' and 'extended' learn on from, in sites "
        "(of 'extended': where the expected error is that of the climatology), a number from 10⁻³ to 10⁶",
        ge=1e-3,
        le=1e6,
    )
    drift: float = option(
        0.0,
        "sites per cycle by which the localization of 'hybrid' moves with the news, toward larger indices, a number "
        "from −1,000 to 1,000",
        ge=-1e3,
        le=1e3,
    )
    displacement: bool = option(
        False,
        "True or False: whether it is learned how far a wrong model keeps the analyses off the truth",
    )
    own: dict[str, bool | int | float | str] = option({}, "options of an analysis of your own, by name")
    start: Literal["climatology", "first_observation", "truth"] = option(
        "climatology", "'climatology', 'first_observation' or 'truth': what a filter's members start around"
    )
    clamp: float = option(
        4.0, "the largest state allowed, in climatological standard deviations, a number from 3 to 10⁶", ge=3, le=1e6
    )

    loss: Literal["ss_forecast", "ss_analysis", "clean_analysis"] = option(
        "ss_forecast", "'ss_forecast', 'ss_analysis' or 'clean_analysis'"
    )
    leads: int = option(1, "the number of forecasts that score an analysis, a whole number from 1 to 10", ge=1, le=10)
    order: Literal["schedule", "random"] = option(
        "schedule", "'schedule' or 'random': how the masks of a schedule come in training"
    )
    noise_draws: Literal["once", "each"] = option(
        "once",
        "'once' or 'each': whether a record has its errors (and random order) for good, or new ones at each pass",
    )
    restart: float = option(
        0.003, "the share of filters that start anew after each window, a number from 0 to 1", ge=0, le=1
    )
    window: int = option(10, "cycles unrolled for one gradient, a whole number from 1 to 10,000", ge=1, le=10000)
    batch: int = option(16, "trajectories per update, a whole number from 1 to 100,000", ge=1, le=100000)
    pool: int = option(
        128,
        "filters trained in turn in each setting, a whole number of at least one batch, and at most 1,000,000",
        ge=1,
        le=1000000,
    )
    updates: int = option(1000, "gradient updates, a whole number from 1 to 1,000,000,000", ge=1, le=1000000000)
    optimizer: Literal["muon", "adamw"] = option("muon", "'muon' or 'adamw': what trains the hidden matrices")
    lr: float = option(1.5e-3, "the learning rate of the hidden matrices, a number > 0, at most 10⁶", gt=0, le=1e6)
    adamw_lr: float = option(
        1e-3, "AdamW's learning rate for the other parameters, a number > 0, at most 10⁶", gt=0, le=1e6
    )
    rates: Literal["cosine", "steps"] = option(
        "cosine", "'cosine' (warm-up, then down to zero) or 'steps' (up over a tenth, halved at 40 % and at 80 %)"
    )
    averaging: float = option(
        0.995,
        "the share of the averaged weights that an update keeps, a number ≥ 0 and < 1 (0: the last weights count)",
        ge=0,
        lt=1,
    )
    weight_decay: float = option(
        0.01, "the decay of the hidden matrices per update, in learning rates, a number from 0 to 10³", ge=0, le=1e3
    )
    clip_norm: float = option(0.3, "the largest gradient norm, a number > 0, at most 10¹²", gt=0, le=1e12)
    n_settings: int = option(
        0,
        "the number of settings that one filter is trained in, drawn at random, a whole number from 0 to 10,000 "
        "(0: its own alone)",
        ge=0,
        le=10000,
    )
    segments: int = option(
        64, "independent training trajectories in each setting, a whole number from 1 to 1,000,000", ge=1, le=1000000
    )
    cycles: int = option(
        3750, "cycles per training trajectory, more than the window and at most 100,000,000", ge=2, le=10**8
    )
    pretrained: str = option(
        "",
        "the name of a stored filter whose weights are trained further, or '' to start from nothing",
        pattern=r"^(\w[\w.-]*)?$",
    )
    record: str = option(
        "",
        "what is trained on in place of simulated observations, as `train --record` and train(observations=…) call it: "
        "letters, digits, _ and -, or '' for none",
        pattern="^[A-Za-z0-9_-]*$",
    )
    seed: int = option(0, "a whole number from 0 to 2³² − 1", ge=0, lt=2**32)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "'auto', 'cpu' or 'cuda'")

    @model_validator(mode="after")
    def _consistent(self) -> "Experiment":
        for sentence in problems(self):
            raise ValueError(sentence)
        return self

    def changed(self, **options: Any) -> "Experiment":
        """The same experiment with other options, validated.

        Raises:
            ParameterError: as :func:`configure` does.
        """
        return validated({**self.model_dump(), **options})

    @property
    def forecast_model(self) -> Dynamics:
        """What the filter forecasts with."""
        return forecast_model_of(self.system, self.dt)

    @property
    def torch_device(self) -> torch.device:
        """The device to run on: CUDA if there is one, unless told otherwise."""
        cuda = self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())
        return torch.device("cuda" if cuda else "cpu")

    def training_lag(self, update: int) -> int:
        """The lag of the filters that are trained, after so many updates."""
        first = self.first_lag or self.lag
        return min(self.lag, first + update * (self.lag - first + 1) // self.updates)

    @property
    def method(self) -> str:
        """The method's name in the table of scores."""
        if self.loss != "ss_forecast":
            return f"amortized_{self.loss}"
        if self.n_settings:
            return "amortized_any"
        if self.network.startswith("ff"):
            return "amortized_ff"
        return "amortized_original" if self.analysis in ("original", "gated") else "amortized"

    @property
    def label(self) -> str:
        """What tells this run from others of the same method and size, in figures and tables."""
        unusual = self._unusual_network.removeprefix(f"{self.analysis}_")
        network = f" {unusual}" if unusual else ""
        loss = "" if self.loss == "ss_forecast" else f", {self.loss}"
        settings = f", {self.n_settings} settings" if self.n_settings else ""
        gradient = ", gradient" if self.sees_gradient else ""
        gradient += " of the window" if self.sees_window else ""
        displaced = ", displacement" if self.displacement else ""
        return f"{self.analysis}{network}, lag {self.lag}{gradient}{loss}{displaced}{settings}"

    @property
    def _unusual_network(self) -> str:
        """The network's name, where it is not the one that the analysis has by default."""
        usual = ANALYSES.find(self.analysis).defaults.get("network", "conv")
        return "" if self.network == usual else self.network

    @property
    def setting(self) -> Setting:
        """What is observed, how often and how well."""
        return Setting(self.system, self.obs_conf, self.step_size, self.noise)

    @property
    def name(self) -> str:
        """A file name for this run's checkpoint and results."""
        usual = EXPERIMENTS[self.experiment].get("system", Experiment.model_fields["system"].default)
        setting = "" if self.system == usual else f"{self.system}-"
        setting += f"{self.n_settings}settings" if self.n_settings else self.setting.observing
        setting += "" if self.dt is None else f"-model{self.dt:g}"
        setting += "" if self.start == "climatology" else f"-{self.start}"
        network = f"-{self._unusual_network}" if self._unusual_network else ""
        lag = f"-lag{self.lag}" if self.lag else ""
        lag += "-gradient" if self.sees_gradient else ""
        lag += "-window" if self.sees_window else ""
        loss = "" if self.loss == "ss_forecast" else f"-{self.loss}"
        loss += "-displacement" if self.displacement else ""
        tuned = ("-further" if self.pretrained else "") + (f"-on-{self.record}" if self.record else "")
        return f"{self.experiment}-{setting}-{self.analysis}{network}{lag}{loss}-m{self.m}-seed{self.seed}{tuned}"


def configure(experiment: str = "l96_conv", /, **requested: Any) -> Experiment:
    """The validated experiment of that name; options given as ``None`` keep the preset's choice.

    Raises:
        ParameterError: for an unknown name, a wrong type, a value out of range or a senseless combination.
    """
    if experiment not in EXPERIMENTS:
        raise ParameterError(f"experiment = {experiment!r} is not known; known: {', '.join(EXPERIMENTS)}.")
    requested = {name: value for name, value in requested.items() if value is not None}
    named = {"experiment": experiment, **EXPERIMENTS[experiment]}
    # A wrong analysis or preset has no defaults; the validation below then says what is wrong with it.
    name, preset = (
        str({**named, **requested}.get(option, Experiment.model_fields[option].default))
        for option in ("analysis", "preset")
    )
    analysis = ANALYSES.get(name, Analysis)
    refuse_unknown(requested, [*options(), *analysis.own])
    layers = (
        PRESETS.get(preset, {}),
        analysis.defaults,
        analysis.presets.get(preset, {}),
        named,
        analysis.experiments.get(experiment, {}),
        analysis.experiments.get((experiment, preset), {}),
        requested,
    )
    configured = validated({option: value for layer in layers for option, value in layer.items()})
    if not configured.lag:
        for option in ("lag_warmup", "first_lag", "drift"):
            if requested.get(option):
                raise ParameterError(
                    f"{option} = {requested[option]} does nothing without a lag; leave it out, or take lag ≥ 1."
                )
    if configured.n_settings:
        for option in ("obs_conf", "step_size", "noise"):
            if option in requested:
                raise ParameterError(
                    f"{option} = {requested[option]!r} would be ignored: n_settings = {configured.n_settings} draw "
                    "theirs; leave it out, or set n_settings to 0."
                )
    return configured


def validated(values: dict[str, Any]) -> Experiment:
    """The experiment with all of these options.

    Raises:
        ParameterError: as :func:`configure` does.
    """
    # As pandas and NumPy hand them out.
    values = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
    analysis, given = ANALYSES.get(str(values.get("analysis")), Analysis), values.get("own", {})
    named = {name: value for name, value in values.items() if name in analysis.own}
    values = {name: value for name, value in values.items() if name not in named}
    refuse_unknown(values, list(Experiment.model_fields))
    if isinstance(given, dict):  # all of them are in a file, and 1 is a number where 1.0 is
        own = {**analysis.own, **given, **named}
        whole = {name: float(v) for name, v in own.items() if type(v) is int and type(analysis.own.get(name)) is float}
        values["own"] = {**own, **whole}
    try:
        return Experiment(**values)
    except ValidationError as error:
        raise ParameterError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    if not first["loc"]:
        return str(first.get("ctx", {})["error"])
    name, value = str(first["loc"][0]), first["input"]
    return f"{name} = {value!r} (of type {type(value).__name__}) is not allowed; {name} is {allowed(name)}."


def refuse_unknown(names: Any, known: list[str]) -> None:
    """Raise a sentence naming the first of ``names`` that is not ``known``, and what was probably meant."""
    for name in names:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean `{close[0]}`? " if close else ""
            raise ParameterError(f"Unknown parameter `{name}`: {hint}Known parameters: {', '.join(known)}.")
