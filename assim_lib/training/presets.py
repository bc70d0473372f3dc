"""What presets and named experiments set: tables, no code.

An experiment's options are built of these in layers, see :func:`assim_lib.training.experiment.configure`. What an
analysis trains well with, it says itself (:attr:`assim_lib.analyses.Analysis.defaults`, ``presets``, ``experiments``).
"""

from typing import Any

# A run's size, whatever the analysis; an analysis may have sizes of its own.
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"updates": 200, "cycles": 1000, "pool": 32},
    "cpu": {"updates": 5000},
    "paper": {"updates": 47000},
}

# What each experiment is, whatever the analysis and the preset; what they say of sizes gives way to it.
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "l96_ff": {"system": "l96", "network": "ff", "hidden_size": 250, "blocks": 2, "memory": 4},
    "l96_conv": {"system": "l96"},
    "ks": {"system": "ks", "step_size": 1.0},
    "misspec": {"system": "two_level"},
    "vl20": {"system": "vl20", "obs_conf": "every_4th_dim_partial_obs"},
    "losses": {"system": "l96"},
    # No more observed cycles in all than for a filter of one setting.
    "l96_any": {
        "system": "l96",
        "analysis": "extended",
        "n_settings": 48,
        "segments": 8,
        "cycles": 625,
        "pool": 64,
    },
    "unknown_operators": {
        "system": "l96",
        "obs_conf": "unstructured_partial_obs",
        "network": "ff",
        "hidden_size": 250,
        "blocks": 2,
        "memory": 4,
    },
}
