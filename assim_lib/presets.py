"""What named experiments, analyses and presets set: tables, no code.

An experiment's options are built of these in layers, see :func:`assim_lib.experiments.configure`.
"""

from typing import Any

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
        "settings": 48,
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

# The original method keeps its original sizes; the others have those that trained best here.
ANALYSIS_DEFAULTS: dict[str, dict[str, Any]] = {
    "original": {
        "network": "original",
        "hidden_size": 64,
        "blocks": 4,
        "dropout": 0.1,
        "test_dropout": True,
        "band": 1,
        "training_m": 2,
        "order": "random",
    },
    "gated": {"dropout": 0.1, "test_dropout": True, "band": 2, "training_m": 2, "order": "random"},
    "recurrent": {"hidden_size": 64, "blocks": 4, "memory": 24, "window": 12},
    "hybrid": {"hidden_size": 64, "blocks": 4, "memory": 16, "window": 8, "lag": 3, "inflation": 1.05},
    # Untrained, an extended filter is close to the best there is. Training first undoes some of that: it takes some
    # thousand updates, or small steps, until it has added to it.
    "extended": {
        "hidden_size": 64,
        "blocks": 4,
        "memory": 16,
        "window": 8,
        "lag": 8,
        "growth": 10,
        "inflation": 1.02,
        "taper_length": 0.5,
        "lr": 2e-4,
        "adamw_lr": 2e-4,
        "m": 1,
    },
    "covariant": {
        "hidden_size": 64,
        "blocks": 4,
        "memory": 16,
        "window": 8,
        "lag": 5,
        "inflation": 1.02,
        "taper_length": 4.0,
        "lr": 0.001,
    },
}

# Where an analysis starts in an experiment: untrained, it tracks well with these on validation data.
STARTS: dict[tuple[str, str], dict[str, Any]] = {
    ("l96_conv", "hybrid"): {"drift": 0.5},
    ("l96_ff", "hybrid"): {"drift": 0.5},
    ("ks", "original"): {"kernel": 7, "blocks": 3, "memory": 4, "band": 0, "tendency": False},
    ("ks", "hybrid"): {"inflation": 1.02, "taper_length": 12.0, "batch": 8},
    ("ks", "extended"): {"inflation": 1.0, "batch": 6},
    ("misspec", "hybrid"): {"inflation": 1.3, "lag": 0},
    ("misspec", "extended"): {"inflation": 1.3, "lag": 0},
    # Between the lags that are best where much and where little is seen.
    ("l96_any", "extended"): {"lag": 2},
    ("l96_any", "covariant"): {"lag": 1, "inflation": 1.07},
    ("vl20", "hybrid"): {"inflation": 1.1, "taper_length": 3.0, "lag": 1},
    ("vl20", "extended"): {"inflation": 1.08, "lag": 3},
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "quick": {
        "original": {"updates": 300, "batch": 8, "cycles": 1000, "pool": 32},
        "gated": {"updates": 300, "batch": 8, "cycles": 1000, "pool": 32},
        "recurrent": {"updates": 300, "cycles": 1000, "pool": 32},
        "hybrid": {"updates": 200, "cycles": 1000, "pool": 32},
        "covariant": {"updates": 200, "cycles": 1000, "pool": 32},
        "extended": {"updates": 200, "cycles": 1000, "pool": 32},
    },
    "cpu": {
        "original": {"updates": 16000},
        "gated": {"updates": 16000, "hidden_size": 64},
        "recurrent": {"updates": 8000},
        "hybrid": {"updates": 5000, "hidden_size": 96},
        "covariant": {"updates": 5000, "hidden_size": 96},
        "extended": {"updates": 2000},
    },
    "paper": {
        # As published: a long trajectory in windows of 40 from the truth, errors and masks drawn anew, AdamW as it comes.
        "original": {
            "updates": 47000,
            "window": 40,
            "batch": 64,
            "pool": 64,
            "restart": 1.0,
            "start": "truth",
            "noise_draws": "each",
            "segments": 1,
            "cycles": 240_000,
            "training_m": None,
            "optimizer": "adamw",
            "lr": 2.15e-3,
            "adamw_lr": 2.15e-3,
            "rates": "steps",
            "averaging": 0.0,
            "clip_norm": 1e9,
            "dropout": 0.2,
        },
        "gated": {"updates": 47000, "window": 40, "batch": 64, "hidden_size": 64},
        "recurrent": {"updates": 47000, "window": 40, "batch": 64},
        "hybrid": {"updates": 47000, "hidden_size": 128},
        "covariant": {"updates": 47000, "hidden_size": 128},
        "extended": {"updates": 47000, "hidden_size": 128},
    },
}
