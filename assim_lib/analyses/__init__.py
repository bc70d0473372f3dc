"""Analyses: what they share, and those of the library. A reader's own is registered with :func:`register_analysis`."""

from assim_lib.analyses.base import (
    ANALYSES,
    Analysis,
    AnalysisInput,
    Corrected,
    Normalization,
    register_analysis,
)
from assim_lib.analyses.ensemble_kalman import CovariantAnalysis, HybridAnalysis
from assim_lib.analyses.extended_kalman import ExtendedAnalysis
from assim_lib.analyses.neural import GatedAnalysis, OriginalAnalysis, RecurrentAnalysis

__all__ = [
    "ANALYSES",
    "Analysis",
    "AnalysisInput",
    "Corrected",
    "CovariantAnalysis",
    "ExtendedAnalysis",
    "GatedAnalysis",
    "HybridAnalysis",
    "Normalization",
    "OriginalAnalysis",
    "RecurrentAnalysis",
    "register_analysis",
]
