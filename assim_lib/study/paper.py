"""The experiments of McCabe & Brown (2021): what they published, and what their method reaches here."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from assim_lib.setting import Setting
from assim_lib.study.results import best_of, load_scores, select, training_log
from assim_lib.study.summaries import load_published
from assim_lib.study.trainings import training_runs

OBS_CONF = "every_4th_dim_partial_obs"


class PaperExperiment(NamedTuple):
    """One of them: its name, what is observed, and whether the network is the feed-forward one."""

    title: str
    setting: Setting
    feed_forward: bool = False


# Six of the paper's code and one that came later; the quarter of the sites moves in two directions, see the chapter.
EXPERIMENTS = (
    PaperExperiment("L96, feed-forward, all sites", Setting("l96"), feed_forward=True),
    PaperExperiment("L96, feed-forward, moving quarter", Setting("l96", OBS_CONF), feed_forward=True),
    PaperExperiment("L96, all sites", Setting("l96")),
    PaperExperiment("L96, moving quarter, the paper's direction", Setting("l96", f"{OBS_CONF}_upstream")),
    PaperExperiment("L96, moving quarter, DAPPER's direction", Setting("l96", OBS_CONF)),
    PaperExperiment("Kuramoto–Sivashinsky, all sites", Setting("ks", step_size=1.0)),
    PaperExperiment("two-level truth, one-level model", Setting("two_level")),
    PaperExperiment("VL20, moving quarter", Setting("vl20", OBS_CONF)),
)
# The paper's network as it is, and the same update with a network that is easier to train.
ANALYSES = ("original", "gated")
RIVALS = {f"LETKF {m}": m for m in (5, 10, 20, 30)}


def settings() -> list[str]:
    """What is observed in them, by the names that files have."""
    return sorted({one.setting.slug for one in EXPERIMENTS})


def reproduction() -> pd.DataFrame:
    """One row an experiment: RMSE as published, of the paper's method here, and of the LETKF on the same observations.

    ``original`` and ``gated`` are the best of their kind on validation data, with ``…_lo`` and ``…_hi``, the bounds of
    their 95 % interval on the test set, and ``…_checkpoint``; ``nan`` where there is none.
    """
    return pd.DataFrame([_row(one) for one in EXPERIMENTS]).set_index("experiment")


def _row(experiment: PaperExperiment) -> dict[str, Any]:
    setting = experiment.setting.as_dict()
    published = select(load_published(), **setting, method="amortized_original").rmse
    row: dict[str, Any] = {"experiment": experiment.title}
    row["published"] = float("nan") if experiment.feed_forward or published.empty else published.iloc[0]
    learned = best_of_each_analysis(experiment)
    for analysis in ANALYSES:
        best = learned.loc[analysis] if analysis in learned.index else None
        names = {"": "rmse", "_lo": "rmse_lo", "_hi": "rmse_hi", "_checkpoint": "checkpoint"}
        row |= {f"{analysis}{end}": float("nan") if best is None else best[name] for end, name in names.items()}
    rivals = select(load_scores(**setting, method="LETKF"), best=True).set_index("m").rmse
    return row | {name: rivals.get(m, float("nan")) for name, m in RIVALS.items()}


def best_of_each_analysis(experiment: PaperExperiment) -> pd.DataFrame:
    """The scores of the filters of the paper's method, by analysis: of each the best on validation data.

    A lag, a displacement and gated convolutions are additions of ours: filters that have one are not of it.
    """
    rows = load_scores(**experiment.setting.as_dict(), analysis=list(ANALYSES))
    options = [training_log(name).experiment for name in rows.checkpoint]
    added = [o["lag"] or o.get("displacement") or o.get("network") == "conv_glu" for o in options]
    same_kind = (rows.method == "amortized_ff") == experiment.feed_forward
    rows = pd.DataFrame(rows[same_kind & ~np.array(added, dtype=bool)])
    return best_of(rows, ["analysis"]).set_index("analysis")


def trainings() -> pd.DataFrame:
    """What each of these filters cost, and the command that trains it again, by experiment and analysis."""
    runs, rows = training_runs().set_index("name"), []
    for experiment in EXPERIMENTS:
        for analysis, best in best_of_each_analysis(experiment).iterrows():
            run = runs.loc[best.checkpoint.removesuffix(".safetensors")]
            rows.append({"experiment": experiment.title, "analysis": analysis, "m": best.m, **run})
    columns = ["experiment", "analysis", "m", "updates", "cycles_seen", "core_minutes", "gpu_minutes", "command"]
    return pd.DataFrame(rows, columns=columns).set_index(["experiment", "analysis"])
