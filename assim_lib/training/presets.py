"""What presets and named experiments set: tables, no code.

An experiment's options are built of these in layers, see :func:`assim_lib.training.experiment.configure`. What an
analysis trains well with, it says itself (:attr:`assim_lib.analyses.Analysis.defaults`).
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

# Where an analysis starts in an experiment: untrained, it tracks well with these on validation data.
STARTS: dict[tuple[str, str], dict[str, Any]] = {
    ("l96_conv", "hybrid"): {"drift": 0.5},
    ("l96_ff", "hybrid"): {"drift": 0.5},
    # As published; its 250 numbers of memory are six a site here.
    ("l96_ff", "original"): {"network": "ff_original", "memory": 6},
    ("ks", "original"): {"kernel": 7, "blocks": 3, "memory": 4, "band": 0, "tendency": False},
    ("ks", "hybrid"): {"inflation": 1.02, "taper_length": 12.0, "batch": 8},
    ("ks", "extended"): {"inflation": 1.0, "batch": 6},
    ("misspec", "hybrid"): {"inflation": 1.3, "lag": 0},
    ("misspec", "extended"): {"inflation": 1.3, "lag": 0},
    # Between the lags that are best where much and where little is seen.
    ("l96_any", "extended"): {"lag": 2},
    ("l96_any", "covariant"): {"lag": 1, "inflation": 1.07},
    # Small enough for a browser; few filters in each setting, so that all of them are warm.
    ("l96_any", "recurrent"): {
        "m": 1,
        "sees_error": True,
        "hidden_size": 48,
        "blocks": 3,
        "memory": 16,
        "leads": 2,
        "window": 10,
        "n_settings": 72,
        "batch": 16,
        "pool": 16,
        "restart": 0.02,
    },
    ("unknown_operators", "original"): {"order": "schedule", "noise_draws": "once"},
    ("unknown_operators", "gated"): {"order": "schedule", "noise_draws": "once"},
    ("vl20", "hybrid"): {"inflation": 1.1, "taper_length": 3.0, "lag": 1},
    ("vl20", "extended"): {"inflation": 1.08, "lag": 3},
}
