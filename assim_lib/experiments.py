"""The named experiments, their options, and the presets that size a run.

An :class:`Experiment` is one frozen, validated object: everything that determines a run. It is built by
:func:`configure` from four layers, each overriding the one before: the field defaults, what the chosen ``analysis`` and
``preset`` set, what the named experiment sets, and what the caller asks for. Nothing is
computed before the whole object is valid, and every mistake is answered by one sentence.
"""

import types
from difflib import get_close_matches
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from assim_lib.analyses import ANALYSES
from assim_lib.dynamics import Dynamics
from assim_lib.kalman import HybridAnalysis
from assim_lib.networks import NETWORKS
from assim_lib.observations import identity, observation_model
from assim_lib.presets import ANALYSIS_DEFAULTS, EXPERIMENTS, PRESETS, STARTS
from assim_lib.systems import forecast_model_of, system_of
from assim_lib.trajectories import BURN_IN

Preset = Literal["quick", "cpu", "paper"]


class ParameterError(ValueError):
    """A parameter that cannot be used; its message is one sentence naming it, what came and what is allowed."""

    def _render_traceback_(self) -> list[str]:
        # Read by IPython: in a notebook the sentence alone says everything.
        return [f"ParameterError: {self}"]


def options() -> list[str]:
    """The options a caller may set: every field but the experiment's name."""
    return [name for name in Experiment.model_fields if name != "experiment"]


def option(default: Any, allowed: str, **bounds: Any) -> Any:
    """A field whose description says, in words, which values are allowed."""
    return Field(default, description=allowed, **bounds)


class Experiment(BaseModel):
    """Everything that determines a run. The description of each field says what it may be."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    experiment: str = option("l96_conv", "the name of an experiment")
    preset: Preset = option(
        "quick", "'quick' (about a minute), 'cpu' (at most two hours on 2 cores) or 'paper' (a GPU)"
    )
    system: str = option("l96", "the name of a system")

    obs_conf: str = option("full_obs", "the name of a registered observation configuration")
    step_size: float = option(0.1, "the observation interval, a positive multiple of the integration step", gt=0)
    dt: float | None = option(None, "the forecast model's integration step, a number > 0, or None for its own", gt=0)
    noise: float = option(1.0, "the observation error's standard deviation, a number > 0", gt=0)

    analysis: str = option(
        "original", "the name of an analysis: 'original', 'gated', 'recurrent', 'hybrid', 'covariant' or 'extended'"
    )
    network: str = option(
        "conv", "the name of a network: 'conv', 'ff', 'ff_per_operator', 'original' or 'original_early'"
    )
    m: int = option(10, "the ensemble size, a whole number ≥ 1", ge=1)
    training_m: int | None = option(
        None, "the ensemble size while training, a whole number ≥ 1, or None for the same", ge=1
    )
    lag: int = option(
        0, "cycles between the corrected state and the observation, a whole number from 0 to 20", ge=0, le=20
    )
    growth: int = option(
        0, "cycles after which the lag of a new filter grows by one, a whole number ≥ 0 (0: full-grown at once)", ge=0
    )
    hidden_size: int = option(32, "the network's width, a whole number ≥ 1", ge=1)
    blocks: int = option(
        3, "the number of residual blocks ('original': of hidden layers, two a block), a whole number ≥ 0", ge=0
    )
    kernel: int = option(5, "the convolution window in sites, an odd number ≥ 1", ge=1)
    memory: int = option(6, "memory channels per site, a whole number ≥ 1", ge=1)
    band: int = option(0, "reach of the covariance features in sites, a whole number ≥ 0", ge=0)
    tendency: bool = option(True, "True or False: whether 'original' sees the tendency")
    other_member: bool = option(
        True, "True or False: whether 'gated' sees another member's forecast where nothing is observed"
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
        "the reach of the localization that 'hybrid', 'covariant' and 'extended' learn on from, in sites (of 'extended': where "
        "the expected error is that of the climatology), a number > 0",
        gt=0,
    )
    drift: float = option(
        0.0,
        "sites per cycle by which the localization of 'hybrid' moves with the news, toward larger indices, a number",
    )
    start: Literal["climatology", "first_observation", "truth"] = option(
        "climatology", "'climatology', 'first_observation' or 'truth': what a filter's members start around"
    )
    clamp: float = option(4.0, "the largest state allowed, in climatological standard deviations, a number ≥ 3", ge=3)

    loss: Literal["ss_forecast", "ss_analysis", "clean_analysis"] = option(
        "ss_forecast", "'ss_forecast', 'ss_analysis' or 'clean_analysis'"
    )
    leads: int = option(1, "the number of forecasts that score an analysis, a whole number from 1 to 10", ge=1, le=10)
    order: Literal["schedule", "random"] = option(
        "schedule", "'schedule' or 'random': how the masks of a schedule come in training"
    )
    noise_draws: Literal["once", "each"] = option(
        "once", "'once' or 'each': whether a record has its errors (and random order) for good, or new ones at each pass"
    )
    restart: float = option(
        0.003, "the share of filters that start anew after each window, a number from 0 to 1", ge=0, le=1
    )
    window: int = option(10, "cycles unrolled for one gradient, a whole number ≥ 1", ge=1)
    batch: int = option(16, "trajectories per update, a whole number ≥ 1", ge=1)
    pool: int = option(128, "filters trained in turn in each setting, a whole number of at least one batch", ge=1)
    updates: int = option(1000, "gradient updates, a whole number ≥ 1", ge=1)
    optimizer: Literal["muon", "adamw"] = option("muon", "'muon' or 'adamw': what trains the hidden matrices")
    lr: float = option(1.5e-3, "the learning rate of the hidden matrices, a number > 0", gt=0)
    adamw_lr: float = option(1e-3, "AdamW's learning rate for the other parameters, a number > 0", gt=0)
    rates: Literal["cosine", "steps"] = option(
        "cosine", "'cosine' (warm-up, then down to zero) or 'steps' (up over a tenth, halved at 40 % and at 80 %)"
    )
    averaging: float = option(
        0.995,
        "the share of the averaged weights that an update keeps, a number ≥ 0 and < 1 (0: the last weights count)",
        ge=0,
        lt=1,
    )
    clip_norm: float = option(0.3, "the largest gradient norm, a number > 0", gt=0)
    settings: int = option(
        0,
        "the number of settings that one filter is trained in, drawn at random, a whole number ≥ 0 (0: its own alone)",
        ge=0,
    )
    segments: int = option(64, "independent training trajectories in each setting, a whole number ≥ 1", ge=1)
    cycles: int = option(3750, "cycles per training trajectory, more than the window", ge=2)
    seed: int = option(0, "a whole number ≥ 0", ge=0)
    threads: int = option(1, "processor threads, a whole number ≥ 1 (these small tensors gain little from more)", ge=1)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "'auto', 'cpu' or 'cuda'")

    @model_validator(mode="after")
    def _consistent(self) -> "Experiment":
        dynamics = self.forecast_model
        seen = observation_model(self.obs_conf, dynamics.channels, dynamics.sites)
        ANALYSES.find(self.analysis)
        NETWORKS.find(self.network)
        system_of(self.system).steps_per_cycle(self.step_size)
        dynamics.steps_per_cycle(self.step_size)
        kalman = issubclass(ANALYSES[self.analysis], HybridAnalysis)
        problems = {
            f"m = 1 does not work with analysis = {self.analysis!r}, which needs ensemble covariances; take m ≥ 2, or "
            "analysis = 'recurrent'.": self.m < ANALYSES[self.analysis].minimum_members,
            f"m = {self.m} does not work with analysis = 'extended', which carries a covariance in place of members; take "
            "m = 1.": self.analysis == "extended" and self.m > 1,
            f"inflation = {self.inflation} does nothing to m = 1; set it to 1.": self.m == 1
            and self.inflation != 1
            and not ANALYSES[self.analysis].carries_covariance,
            f"taper_length = {self.taper_length:g} is not used by analysis = {self.analysis!r}; leave it out.": self.analysis
            in ("original", "gated", "recurrent")
            and self.taper_length != Experiment.model_fields["taper_length"].default,
            f"drift = {self.drift} is used by analysis = 'hybrid' only; set it to 0.": bool(self.drift)
            and self.analysis != "hybrid",
            f"cycles = {self.cycles} must be more than window + leads - 1 + growth · lag = "
            f"{self.window + self.leads - 1 + self.growth * self.lag}.": self.cycles
            <= self.window + self.leads - 1 + self.growth * self.lag,
            f"leads = {self.leads} score forecasts, and loss = {self.loss!r} has none; set it to 1.": self.leads > 1
            and self.loss != "ss_forecast",
            f"training_m = {self.training_m} does not work with analysis = {self.analysis!r}, which needs at least "
            f"{ANALYSES[self.analysis].minimum_members} members.": (self.training_m or self.m)
            < ANALYSES[self.analysis].minimum_members
            <= self.m,
            f"order = 'random' and noise_draws = 'each' need operators that are known, and some of obs_conf = "
            f"{self.obs_conf!r} are not; take 'schedule' and 'once'.": bool(seen.unknown)
            and (self.order, self.noise_draws) != ("schedule", "once"),
            "noise_draws = 'each' knows no first observation; take another start than 'first_observation'.": self.start
            == "first_observation"
            and self.noise_draws == "each",
            f"growth · lag = {self.growth * self.lag} must be at most {BURN_IN}, the cycles that are not scored.": self.growth
            * self.lag
            > BURN_IN,
            f"batch = {self.batch} must be at most pool = {self.pool}.": self.batch > self.pool,
            f"kernel = {self.kernel} must be odd.": self.kernel % 2 == 0,
            f"test_dropout = True needs dropout > 0, and dropout = {self.dropout}.": self.test_dropout
            and not self.dropout,
            f"band = {self.band} is not used by analysis = {self.analysis!r}; set it to 0.": bool(self.band)
            and self.analysis in ("recurrent", "extended"),
            f"analysis = {self.analysis!r} needs operators it may use, and some of obs_conf = {self.obs_conf!r} are unknown; "
            "take 'original', 'gated' or 'recurrent'.": kalman and bool(seen.unknown),
            f"network = {self.network!r} treats all sites alike, and the unknown instruments of obs_conf = {self.obs_conf!r} "
            "do not; take 'ff' or 'ff_per_operator'.": self.network in ("conv", "original", "original_early")
            and bool(seen.unknown),
            f"network = 'ff_per_operator' needs a schedule of several operators, and obs_conf = {self.obs_conf!r} has "
            "one; take 'ff'.": self.network == "ff_per_operator" and seen.period == 1,
            f"settings = {self.settings} are those of system = 'l96' and its own integration step; set it to 0.": bool(
                self.settings
            )
            and (self.system != "l96" or self.dt is not None),
            f"network = 'ff_per_operator' has a part for each operator, and settings = {self.settings} have others "
            "each; take 'conv' or 'ff'.": self.network == "ff_per_operator" and bool(self.settings),
            f"start = {self.start!r} knows the state at the observation only, and lag = {self.lag} starts before it; "
            "take lag = 0, or start = 'climatology'.": self.start != "climatology" and self.lag > 0,
            f"start = 'first_observation' needs observations of the state itself, and obs_conf = {self.obs_conf!r} has "
            "others; take 'climatology'.": self.start == "first_observation"
            and bool(seen.unknown or seen.operator is not identity),
            "device = 'cuda' asks for a GPU, and there is none; use 'auto' or 'cpu'.": self.device == "cuda"
            and not torch.cuda.is_available(),
        }
        for sentence, wrong in problems.items():
            if wrong:
                raise ValueError(sentence)
        return self

    def changed(self, **options: Any) -> "Experiment":
        """The same experiment with other options, validated.

        Raises
        ------
        ParameterError : as :func:`configure` does.
        """
        return _validated({**self.model_dump(), **options})

    @property
    def forecast_model(self) -> Dynamics:
        """What the filter forecasts with."""
        return forecast_model_of(self.system, self.dt)

    @property
    def torch_device(self) -> torch.device:
        """The device to run on: CUDA if there is one, unless told otherwise."""
        cuda = self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())
        return torch.device("cuda" if cuda else "cpu")

    @property
    def method(self) -> str:
        """The method's name in the table of scores."""
        if self.loss != "ss_forecast":
            return f"amortized_{self.loss}"
        if self.settings:
            return "amortized_any"
        if self.network.startswith("ff"):
            return "amortized_ff"
        return "amortized_original" if self.analysis in ("original", "gated") else "amortized"

    @property
    def label(self) -> str:
        """What tells this run from others of the same method and size, in figures and tables."""
        network = "" if self.network in ("conv", self.analysis) else f" {self.network}"
        loss = "" if self.loss == "ss_forecast" else f", {self.loss}"
        settings = f", {self.settings} settings" if self.settings else ""
        return f"{self.analysis}{network}, lag {self.lag}{loss}{settings}"

    @property
    def setting(self) -> str:
        """What is observed, how often and how well, as a part of file names."""
        return f"{self.obs_conf}-dt{self.step_size:g}-s{self.noise:g}"

    @property
    def name(self) -> str:
        """A file name for this run's checkpoint and results."""
        setting = f"{self.settings}settings" if self.settings else self.setting
        setting += "" if self.dt is None else f"-model{self.dt:g}"
        setting += "" if self.start == "climatology" else f"-{self.start}"
        network = "" if self.network in ("conv", self.analysis) else f"-{self.network}"
        lag = f"-lag{self.lag}" if self.lag else ""
        loss = "" if self.loss == "ss_forecast" else f"-{self.loss}"
        return f"{self.experiment}-{setting}-{self.analysis}{network}{lag}{loss}-m{self.m}-seed{self.seed}"


def configure(experiment: str = "l96_conv", /, **requested: Any) -> Experiment:
    """The validated experiment of that name; options given as ``None`` keep the preset's choice.

    Raises
    ------
    ParameterError : for an unknown name, a wrong type, a value out of range or a senseless combination.
    """
    if experiment not in EXPERIMENTS:
        raise ParameterError(f"experiment = {experiment!r} is not known; known: {', '.join(EXPERIMENTS)}.")
    requested = {name: value for name, value in requested.items() if value is not None}
    refuse_unknown(requested, options())
    own = {"experiment": experiment, **EXPERIMENTS[experiment]}
    # A wrong analysis or preset has no defaults; the validation below then says what is wrong with it.
    analysis, preset = (
        str({**own, **requested}.get(name, Experiment.model_fields[name].default)) for name in ("analysis", "preset")
    )
    layers = (
        ANALYSIS_DEFAULTS.get(analysis, {}),
        PRESETS.get(preset, {}).get(analysis, {}),
        own,
        STARTS.get((experiment, analysis), {}),
        requested,
    )
    found = _validated({name: value for layer in layers for name, value in layer.items()})
    idle = [name for name in ("growth", "drift") if requested.get(name)] if not found.lag else []
    if idle:
        raise ParameterError(
            f"{idle[0]} = {requested[idle[0]]} does nothing without a lag; leave it out, or take lag ≥ 1."
        )
    drawn = [name for name in ("obs_conf", "step_size", "noise") if name in requested] if found.settings else []
    if drawn:
        raise ParameterError(
            f"{drawn[0]} = {requested[drawn[0]]!r} would be ignored: settings = {found.settings} draw theirs; leave it out, or set "
            "settings to 0."
        )
    return found


def _validated(values: dict[str, Any]) -> Experiment:
    try:
        return Experiment(**values)
    except ValidationError as error:
        raise ParameterError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    if not first["loc"]:
        return str(first.get("ctx", {})["error"])
    name, value = str(first["loc"][0]), first["input"]
    allowed = Experiment.model_fields[name].description
    return f"{name} = {value!r} (of type {type(value).__name__}) is not allowed; {name} is {allowed}."


def refuse_unknown(names: Any, known: list[str]) -> None:
    """Raise a sentence naming the first of ``names`` that is not ``known``, and what was probably meant."""
    for name in names:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean `{close[0]}`? " if close else ""
            raise ParameterError(f"Unknown parameter `{name}`: {hint}Known parameters: {', '.join(known)}.")


def notebook_parameters(namespace: dict[str, Any], *extra: str) -> dict[str, Any]:
    """The parameters of a notebook, read from its namespace before anything is computed.

    papermill injects parameters as assignments, and only warns about names the notebook does not have. Called
    right after the parameters cell, this function finds every plain value in the namespace, and refuses those
    that are neither options of an :class:`Experiment` nor named in ``extra``.

    Returns
    -------
    All parameters, by name.
    """
    interactive = {"In", "Out", "exit", "quit", "open"}
    values = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_")
        and name not in interactive
        and not isinstance(value, types.ModuleType)
        and not callable(value)
    }
    refuse_unknown(values, [*options(), *extra])
    return values
