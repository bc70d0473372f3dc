"""Amortized assimilation: recurrent neural ensemble filters, trained from noisy observations alone.

The library proper is what stands beside this file: a system is observed (:mod:`~assim_lib.systems`,
:mod:`~assim_lib.observations`, :mod:`~assim_lib.twin`), an analysis corrects a forecast (:mod:`~assim_lib.networks`,
:mod:`~assim_lib.analyses`), a filter cycles (:mod:`~assim_lib.filter`) along a record (:mod:`~assim_lib.tracking`),
and is judged (:mod:`~assim_lib.losses`, :mod:`~assim_lib.evaluation`). What uses it has folders of its own:
:mod:`~assim_lib.training`, :mod:`~assim_lib.own` (observations of one's own, which :mod:`~assim_lib.assimilation` runs
along), :mod:`~assim_lib.classical` (DAPPER's methods), :mod:`~assim_lib.study` (this book's results) and
:mod:`~assim_lib.figures`.

The names below are imported when they are first asked for: a table of scores is read without PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assim_lib.analyses import Analysis, AnalysisInput, Corrected, register_analysis
    from assim_lib.assimilation import assimilate_record
    from assim_lib.evaluation import Scores
    from assim_lib.filter import AmortizedFilter, Carry
    from assim_lib.instruments import LinearInstruments
    from assim_lib.networks import register_network
    from assim_lib.observations import ObservationModel, register_obs_conf
    from assim_lib.setting import Setting
    from assim_lib.systems import Dynamics, register_system, system_of
    from assim_lib.tracking import assimilate
    from assim_lib.training.checkpoints import checkpoint_path, load_filter
    from assim_lib.training.experiment import Experiment, ParameterError, configure
    from assim_lib.training.run import train
    from assim_lib.training.validation import run_filter, score
    from assim_lib.trajectories import simulate
    from assim_lib.twin import TwinExperiment

_WHERE = {
    "analyses": ("Analysis", "AnalysisInput", "Corrected", "register_analysis"),
    "assimilation": ("assimilate_record",),
    "evaluation": ("Scores",),
    "filter": ("AmortizedFilter", "Carry"),
    "instruments": ("LinearInstruments",),
    "networks": ("register_network",),
    "observations": ("ObservationModel", "register_obs_conf"),
    "setting": ("Setting",),
    "systems": ("Dynamics", "register_system", "system_of"),
    "training.checkpoints": ("checkpoint_path", "load_filter"),
    "training.experiment": ("Experiment", "ParameterError", "configure"),
    "training.run": ("train",),
    "training.validation": ("run_filter", "score"),
    "tracking": ("assimilate",),
    "trajectories": ("simulate",),
    "twin": ("TwinExperiment",),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "AmortizedFilter",
    "Analysis",
    "AnalysisInput",
    "Carry",
    "Corrected",
    "Dynamics",
    "Experiment",
    "LinearInstruments",
    "ObservationModel",
    "ParameterError",
    "Scores",
    "Setting",
    "TwinExperiment",
    "assimilate",
    "assimilate_record",
    "checkpoint_path",
    "configure",
    "load_filter",
    "register_analysis",
    "register_network",
    "register_obs_conf",
    "register_system",
    "run_filter",
    "score",
    "simulate",
    "system_of",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
