"""What the pages show of the table of scores: the names of settings, and tables that put methods side by side.

Everything here is derived from :mod:`assim_lib.results`; nothing is stored.
"""

import pandas as pd

from assim_lib.results import SETTING, load_scores
from assim_lib.storage import data_dir

_SYSTEMS = {"l96": "L96", "ks": "KS", "two_level": "two-level", "vl20": "VL20"}
_OBS_CONFS = {
    "full_obs": "all sites",
    "partial_obs": "every 2nd, moving",
    "every_4th_dim_partial_obs": "every 4th, moving",
    "every_4th_fixed": "every 4th, fixed",
    "unstructured_partial_obs": "unknown operators",
    "unstructured_known_part": "the known part",
}
_USUAL_STEP = {"ks": 1.0}  # 0.1 elsewhere


def setting_name(system: str, obs_conf: str, step_size: float, noise: float) -> str:
    """What a setting is called on a page; the observation interval is named where it is not the usual one."""
    return ", ".join(_names(system, obs_conf, step_size, noise))


def _names(system: str, obs_conf: str, step_size: float, noise: float) -> tuple[str, str, str]:
    interval = "" if step_size == _USUAL_STEP.get(system, 0.1) else f", Δt\N{NBSP}=\N{NBSP}{step_size:g}"
    return _SYSTEMS.get(system, system), _OBS_CONFS.get(obs_conf, obs_conf) + interval, f"σ\N{NBSP}=\N{NBSP}{noise:g}"


def by_setting(table: pd.DataFrame) -> pd.DataFrame:
    """The same rows, each with the name of its setting as index."""
    return table.set_axis([setting_name(*row) for row in table[SETTING].itertuples(index=False)], axis=0)


_CLASSICAL = ("Climatology", "3D-Var", "4D-Var", "LETKF", "iEnKS", "EnKF-N")


def classical_table() -> pd.DataFrame:
    """RMSE of every classical method and ensemble size (a row each) in every setting (a column each), as text.

    A run that lost the truth says so; what has not been measured is a dash.
    """
    table = load_scores(method=list(_CLASSICAL)).query("best")
    system, sites, sigma = zip(*(_names(*row) for row in table[SETTING].itertuples(index=False)), strict=True)
    table = table.assign(
        order=table.method.map(_CLASSICAL.index),
        name=[f"{row.method} {row.m}" if row.m > 1 else row.method for row in table.itertuples()],
        shown=["lost" if row.diverged else f"{row.rmse:.3f}" for row in table.itertuples()],
        system=system,
        sites=sites,
        sigma=sigma,
    )
    wide = table.pivot(index=["order", "m", "name"], columns=["system", "sites", "sigma"], values="shown")
    return wide.sort_index(axis=1).fillna("–").droplevel(["order", "m"]).rename_axis(index=None, columns=[None] * 3)


def load_published() -> pd.DataFrame:
    """Scores that others published, each with its source; ``rmse_longer`` is the same filter's over a longer run.

    They were measured on other truths than ours, and not always in the same way.
    """
    return pd.read_csv(data_dir() / "published.csv")


def beside_published() -> pd.DataFrame:
    """Our classical scores beside the published ones of the same method, size and setting.

    Of the iEnKS the published rows have a lag of one cycle; ours stand beside them with that lag and with the tuned one.
    ``ratio`` is ours over the published one.
    """
    key = [*SETTING, "method", "m"]
    names = {"rmse": "published", "rmse_longer": "published_longer"}
    published = load_published().drop(columns="source").rename(columns=names)
    ours = load_scores().drop_duplicates([*SETTING, "label"])  # the iEnKS stands twice where its tuned lag is one cycle
    ours = ours[[*key, "label", "rmse", "rmse_lo", "rmse_hi", "validation_rmse", "diverged"]]
    table = published.merge(ours, on=key)
    table["ratio"] = table.rmse / table.published
    return table


LEARNED_MEMBERS, CLASSICAL_MEMBERS, REFERENCE_MEMBERS = 10, 30, 100


def headline() -> pd.DataFrame:
    """One row a setting, by its name: what was published, what tuned classical filters reach, and what a learned one does.

    ``published`` is the best published classical score with at most 30 members, where it is one of the same variables,
    ``classical`` our best with as many, ``reference`` our best with 100, and ``learned`` the best filter with at most 10
    members that was trained on observations alone; ``untrained`` is the same filter before its training. All of ours are
    chosen on validation data; ``…_lo`` and ``…_hi`` bound their 95 % intervals. ``closed`` is the share of the way from the LETKF with 10 members to the reference that the learned filter
    goes; 1 is as good as the reference.
    """
    table = load_scores().query("not diverged and validation_rmse.notna()")
    filters = table.method.isin(_CLASSICAL[1:])  # the climatology only marks the scale
    competitors: dict[str, pd.DataFrame] = {
        "classical": table.loc[filters & (table.m <= CLASSICAL_MEMBERS)],
        "reference": table.loc[filters & (table.m >= REFERENCE_MEMBERS)],
        "learned": table.loc[(table.method == "amortized") & (table.m <= LEARNED_MEMBERS)],
        "letkf10": table.loc[(table.method == "LETKF") & (table.m == LEARNED_MEMBERS)],
    }
    published = load_published()
    rivals = published.method.isin(_CLASSICAL[1:]) & (published.m <= CLASSICAL_MEMBERS)
    # Those of the two-level system are averages over its fast variables as well.
    published = published[rivals & (published.system != "two_level")]
    published = published.groupby(SETTING, as_index=False).agg(published=("rmse", "min"))
    rows = table.loc[:, SETTING].drop_duplicates().merge(published, on=SETTING, how="left").set_index(SETTING)
    for name, candidates in competitors.items():
        best = candidates.loc[candidates.groupby(SETTING).validation_rmse.idxmin()].set_index(SETTING)
        columns = {"rmse": name} | {
            k: f"{name}_{k.removeprefix('rmse_')}" for k in ("label", "m", "rmse_lo", "rmse_hi")
        }
        if name == "learned":
            columns |= {"untrained_rmse": "untrained", "checkpoint": "checkpoint"}
        rows = rows.join(best[list(columns)].rename(columns=columns))
    rows["ratio"] = rows.learned / rows.classical
    rows["closed"] = (rows.letkf10 - rows.learned) / (rows.letkf10 - rows.reference)
    return by_setting(rows.drop(columns=["letkf10_label", "letkf10_m"]).reset_index())
