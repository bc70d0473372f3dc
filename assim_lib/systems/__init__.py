"""Dynamical systems: what they are, how they are advanced, and how they are found by name."""

from assim_lib.systems.base import SYSTEMS, Dynamics, forecast_model_of, register_system, system_of
from assim_lib.systems.kuramoto_sivashinsky import KuramotoSivashinsky
from assim_lib.systems.lorenz import Lorenz96, TwoLevelLorenz96, VissioLucarini20

__all__ = [
    "SYSTEMS",
    "Dynamics",
    "KuramotoSivashinsky",
    "Lorenz96",
    "TwoLevelLorenz96",
    "VissioLucarini20",
    "forecast_model_of",
    "register_system",
    "system_of",
]
