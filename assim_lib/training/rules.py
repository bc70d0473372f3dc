"""Which options of an experiment fit together: a rule is a sentence that says what does not, and what to take instead.

What an analysis demands beyond this, it says itself (:meth:`assim_lib.analyses.Analysis.problems`).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from assim_lib.analyses import ANALYSES, Analysis
from assim_lib.losses import NEEDS_TRUTH
from assim_lib.networks import NETWORKS
from assim_lib.observations import ObservationModel, identity, observation_model
from assim_lib.registry import one_of
from assim_lib.seeds import seed_of_setting
from assim_lib.systems import Dynamics, system_of
from assim_lib.training.presets import EXPERIMENTS
from assim_lib.twin import BURN_IN

if TYPE_CHECKING:
    from assim_lib.training.experiment import Experiment

LARGEST = 2 * 10**9  # numbers in memory, 8 GB in single precision
MOST_STEPS = 10_000  # of integration, in a cycle
OF_THE_MASKS = "mask_features"  # what an analysis may use besides options


def problems(options: "Experiment") -> Iterator[str]:
    """Sentences about options that do not fit together, the analysis's own rules included.

    Raises:
        ValueError: one such sentence, where a name is not registered or an interval is no multiple of the step.
    """
    if options.experiment not in EXPERIMENTS:  # in a stored file, it may be anything, a path among others
        yield f"experiment = {options.experiment!r} is not known; known: {', '.join(EXPERIMENTS)}."
    analysis, dynamics = ANALYSES.find(options.analysis), options.forecast_model
    NETWORKS.find(options.network)
    instruments = observation_model(options.obs_conf, dynamics.channels, dynamics.sites, options.noise)
    for model in (system_of(options.system), dynamics):
        steps = model.steps_per_cycle(options.step_size)
        if steps > MOST_STEPS:
            yield (
                f"step_size = {options.step_size:g} is {steps} integration steps of {model.dt:g}, and may be at most "
                f"{MOST_STEPS}; take a shorter interval, or another dt."
            )
    yield from _of_size(options, dynamics)
    for name, m in {"m": options.m, "training_m": options.training_m or options.m}.items():
        if not analysis.minimum_members <= m <= analysis.maximum_members:
            yield f"{name} = {m} does not work with analysis = {options.analysis!r}; {analysis.allowed_members()}."
    yield from analysis.problems(options)
    yield from _idle_options(options, analysis)
    yield from _of_time(options)
    yield from _of_observations(options, analysis, instruments)
    yield from _of_record(options)
    if options.batch > options.pool:
        yield f"batch = {options.batch} must be at most pool = {options.pool}."
    if options.kernel % 2 == 0:
        yield f"kernel = {options.kernel} must be odd."
    if options.network == "original_early" and not options.blocks:
        yield "blocks = 0 leaves network = 'original_early' without its last layer; take blocks ≥ 1."
    if options.test_dropout and not options.dropout:
        yield f"test_dropout = True needs dropout > 0, and dropout = {options.dropout}."
    if options.n_settings and (options.system != "l96" or options.dt is not None):
        yield (
            f"n_settings = {options.n_settings} are those of system = 'l96' and its own integration step; set it to 0."
        )
    if options.n_settings and seed_of_setting(options.seed, options.n_settings - 1) >= 2**32:
        yield (
            f"seed = {options.seed} leaves no seeds for the trajectories of n_settings = {options.n_settings}; take "
            "one below 429,000."
        )
    if options.n_settings and OF_THE_MASKS in analysis.uses:
        # So many as the masks of one setting have, and one setting is what a filter of many is loaded for.
        others = one_of(name for name, kind in ANALYSES.items() if OF_THE_MASKS not in kind.uses)
        yield (
            f"n_settings = {options.n_settings} have many masks, and the features of analysis = {options.analysis!r} "
            f"are those of one; take {others}."
        )
    if options.network == "ff_per_operator" and options.n_settings:
        yield (
            f"network = 'ff_per_operator' has a part for each operator, and n_settings = {options.n_settings} have "
            "others each; take 'conv' or 'ff'."
        )
    if options.device == "cuda" and not torch.cuda.is_available():
        yield "device = 'cuda' asks for a GPU, and there is none; use 'auto' or 'cpu'."


def _of_size(options: "Experiment", dynamics: Dynamics) -> Iterator[str]:
    """Sizes that are allowed one by one, and together fit no memory."""
    state = dynamics.channels * dynamics.sites
    simulated = max(options.n_settings, 1) * options.segments * options.cycles
    together = {
        f"segments = {options.segments} of cycles = {options.cycles}": simulated,
        f"pool = {options.pool} of m = {options.m}": options.pool * options.m,
        f"batch = {options.batch} of m = {options.m}": options.batch * options.m * options.window,
        f"pool = {options.pool} of m = {options.m} and memory = {options.memory}": (
            options.pool * options.m * options.memory / dynamics.channels
        ),
    }
    numbers = {what: size * state for what, size in together.items()}
    weights = options.hidden_size**2 * options.kernel * max(options.blocks, 1)
    numbers[f"hidden_size = {options.hidden_size} with kernel = {options.kernel}"] = weights
    for what, size in numbers.items():
        if size > LARGEST:
            yield f"{what} make {size:.1e} numbers, and at most {LARGEST:.0e} may be; take fewer."


def _idle_options(options: "Experiment", analysis: type[Analysis]) -> Iterator[str]:
    """Options that would be read by nobody."""
    known = set(type(options).model_fields)
    for name in sorted(set(analysis.uses) - known - {OF_THE_MASKS}):
        yield (
            f"analysis = {options.analysis!r} uses {name!r}, and no option of an experiment is called so; name it in "
            "its own, with a default."
        )
    for name in sorted(set(analysis.own) & known):
        yield f"analysis = {options.analysis!r} has {name!r} of its own, which every experiment has; call it otherwise."
    for name, value in options.own.items():
        if name not in analysis.own:
            yield (
                f"own = {name!r} is no option of analysis = {options.analysis!r}, which has "
                f"{one_of(analysis.own) if analysis.own else 'none of its own'}."
            )
        elif type(value) is not type(analysis.own[name]):
            yield (
                f"{name} = {value!r} (of type {type(value).__name__}) is not allowed; {name} is of type "
                f"{type(analysis.own[name]).__name__}."
            )
    others = {name for kind in ANALYSES.values() for name in kind.uses} - set(analysis.uses)
    for name in sorted(others & known):
        default = type(options).model_fields[name].default
        if getattr(options, name) != default:
            yield (
                f"{name} = {getattr(options, name)!r} is not used by analysis = {options.analysis!r}; leave it out, or "
                f"set it to {default!r}."
            )
    if options.leads > 1 and options.loss != "ss_forecast":
        yield f"leads = {options.leads} score forecasts, and loss = {options.loss!r} has none; set it to 1."


def _of_time(options: "Experiment") -> Iterator[str]:
    warmup, reach = options.lag_warmup * options.lag, options.window + options.leads - 1
    if options.cycles <= reach + warmup:
        yield f"cycles = {options.cycles} must be more than window + leads - 1 + lag_warmup · lag = {reach + warmup}."
    if warmup > BURN_IN:
        yield f"lag_warmup · lag = {warmup} must be at most {BURN_IN}, the cycles that are not scored."
    if options.lag and options.first_lag is not None and options.first_lag > options.lag:
        yield f"first_lag = {options.first_lag} must be at most lag = {options.lag}."
    elif options.first_lag is not None and options.updates <= options.lag - options.first_lag:
        yield (
            f"updates = {options.updates} are too few for the lag to grow from first_lag = {options.first_lag} to "
            f"lag = {options.lag}; take more than {options.lag - options.first_lag}."
        )
    if options.start != "climatology" and options.lag > 0:
        yield (
            f"start = {options.start!r} knows the state at the observation only, and lag = {options.lag} starts before "
            "it; take lag = 0, or start = 'climatology'."
        )


def _of_observations(options: "Experiment", analysis: type[Analysis], instruments: ObservationModel) -> Iterator[str]:
    unknown = bool(instruments.unknown)
    if analysis.needs_operator and unknown:
        others = one_of(name for name, kind in ANALYSES.items() if not kind.needs_operator)
        yield (
            f"analysis = {options.analysis!r} needs operators it may use, and some of obs_conf = {options.obs_conf!r} "
            f"are unknown; take {others}."
        )
    if not options.network.startswith("ff") and unknown:
        yield (
            f"network = {options.network!r} treats all sites alike, and the unknown instruments of obs_conf = "
            f"{options.obs_conf!r} do not; take {one_of(name for name in NETWORKS if name.startswith('ff'))}."
        )
    if options.network == "ff_per_operator" and instruments.period == 1:
        yield (
            f"network = 'ff_per_operator' needs a schedule of several operators, and obs_conf = {options.obs_conf!r} "
            "has one; take 'ff'."
        )
    if options.start == "first_observation" and (unknown or instruments.operator is not identity):
        yield (
            f"start = 'first_observation' needs observations of the state itself, and obs_conf = {options.obs_conf!r} "
            "has others; take 'climatology'."
        )
    if options.start == "first_observation" and options.noise_draws == "each":
        yield "noise_draws = 'each' knows no first observation; take another start than 'first_observation'."
    if unknown and (options.order, options.noise_draws) != ("schedule", "once"):
        yield (
            f"order = {options.order!r} with noise_draws = {options.noise_draws!r} needs operators that are known, and "
            f"some of obs_conf = {options.obs_conf!r} are not; take 'schedule' and 'once'."
        )


def _of_record(options: "Experiment") -> Iterator[str]:
    """What an own record cannot give: a truth, errors to draw, many settings."""
    if not options.record:
        return
    if options.loss in NEEDS_TRUTH:
        yield f"loss = {options.loss!r} needs a truth, and an own record has none; take 'ss_forecast'."
    if options.start == "truth":
        yield "start = 'truth' needs a truth, and an own record has none; take 'climatology'."
    if options.noise_draws == "each":
        yield "noise_draws = 'each' adds errors to a truth, and an own record has its own; take 'once'."
    if options.n_settings:
        yield f"n_settings = {options.n_settings} are simulated, and an own record is one setting; set it to 0."
