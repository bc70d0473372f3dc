"""What the pages show of the stored results: tables that put methods side by side, learning curves, trainings.

Everything here is derived from :mod:`assim_lib.study.results`; nothing is stored.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import pandas as pd

from assim_lib.setting import SETTING_COLUMNS, Setting
from assim_lib.storage import data_dir
from assim_lib.study.results import collect, load_scores, select, training_record

CLASSICAL = ("Climatology", "3D-Var", "4D-Var", "LETKF", "iEnKS", "EnKF-N")
LEARNED_MEMBERS, CLASSICAL_MEMBERS, REFERENCE_MEMBERS = 10, 30, 100


def settings_of(table: pd.DataFrame) -> list[Setting]:
    """The setting of each row."""
    return [Setting(*row) for row in table[SETTING_COLUMNS].itertuples(index=False)]


def by_setting(table: pd.DataFrame) -> pd.DataFrame:
    """The same rows, each with the title of its setting as index."""
    return table.set_axis([setting.title for setting in settings_of(table)], axis=0)


def lines_to_beat(setting: Setting, methods: Sequence[str] = ("LETKF",), most: int = 4) -> dict[str, float]:
    """Validation RMSE of the best tuned classical methods of a setting by label, for a figure of learning curves.

    Parameters
    ----------
    methods : of which they are taken.
    most : number of them; none where nothing is tuned for the setting.
    """
    table = load_scores(**setting.as_dict(), method=list(methods)).query("best").nsmallest(most, "validation_rmse")
    return dict(zip(table.label, table.validation_rmse, strict=True))


def classical_table() -> pd.DataFrame:
    """RMSE of every classical method and ensemble size (a row each) in every setting (a column each), as text.

    A run that lost the truth says so; what has not been measured is a dash.
    """
    table = load_scores(method=list(CLASSICAL)).query("best")
    system, sites, sigma = zip(*(setting.names for setting in settings_of(table)), strict=True)
    table = table.assign(
        order=table.method.map(CLASSICAL.index),
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

    Of the iEnKS the published rows have a lag of one cycle; ours stand beside them with that lag and with the tuned
    one. ``ratio`` is ours over the published one.
    """
    names = {"rmse": "published", "rmse_longer": "published_longer"}
    published = load_published().drop(columns="source").rename(columns=names)
    key = [*SETTING_COLUMNS, "method", "m"]
    # The iEnKS stands twice where its tuned lag is one cycle.
    ours = load_scores().drop_duplicates([*SETTING_COLUMNS, "label"])
    ours = ours[[*key, "label", "rmse", "rmse_lo", "rmse_hi", "validation_rmse", "diverged"]]
    table = published.merge(ours, on=key)
    table["ratio"] = table.rmse / table.published
    return table


def headline() -> pd.DataFrame:
    """One row a setting, by its title: what was published, what tuned classical filters reach, what a learned one does.

    ``published`` is the best published classical score with at most 30 members, where it is one of the same
    variables, ``classical`` our best with as many, ``reference`` our best with 100, and ``learned`` the best filter
    with at most 10 members that was trained on observations alone; ``untrained`` is the same filter before its
    training. All of ours are chosen on validation data; ``…_lo`` and ``…_hi`` bound their 95 % intervals. ``closed``
    is the share of the way from the LETKF with 10 members to the reference that the learned filter goes; 1 is as good
    as the reference.
    """
    table = load_scores().query("not diverged and validation_rmse.notna()")
    filters = table.method.isin(CLASSICAL[1:])  # the climatology only marks the scale
    competitors: dict[str, pd.DataFrame] = {
        "classical": table.loc[filters & (table.m <= CLASSICAL_MEMBERS)],
        "reference": table.loc[filters & (table.m >= REFERENCE_MEMBERS)],
        "learned": table.loc[(table.method == "amortized") & (table.m <= LEARNED_MEMBERS)],
        "letkf10": table.loc[(table.method == "LETKF") & (table.m == LEARNED_MEMBERS)],
    }
    published = load_published()
    rivals = published.method.isin(CLASSICAL[1:]) & (published.m <= CLASSICAL_MEMBERS)
    # Those of the two-level system are averages over its fast variables as well.
    published = published[rivals & (published.system != "two_level")]
    published = published.groupby(SETTING_COLUMNS, as_index=False).agg(published=("rmse", "min"))
    rows = table.loc[:, SETTING_COLUMNS].drop_duplicates().merge(published, on=SETTING_COLUMNS, how="left")
    rows = rows.set_index(SETTING_COLUMNS)
    for name, candidates in competitors.items():
        best = candidates.loc[candidates.groupby(SETTING_COLUMNS).validation_rmse.idxmin()].set_index(SETTING_COLUMNS)
        parts = ("label", "m", "rmse_lo", "rmse_hi")
        columns = {"rmse": name} | {part: f"{name}_{part.removeprefix('rmse_')}" for part in parts}
        if name == "learned":
            columns |= {"untrained_rmse": "untrained", "checkpoint": "checkpoint"}
        rows = rows.join(best[list(columns)].rename(columns=columns))
    rows["ratio"] = rows.learned / rows.classical
    rows["closed"] = (rows.letkf10 - rows.learned) / (rows.letkf10 - rows.reference)
    return by_setting(rows.drop(columns=["letkf10_label", "letkf10_m"]).reset_index())


def _learned(**wanted: Any) -> pd.DataFrame:
    """The rows of learned filters, in the order of their files."""
    return select(collect(), **wanted).dropna(subset="checkpoint").sort_values("file")


def histories(**wanted: Any) -> dict[str, list[dict[str, int | float]]]:
    """Learning curves of the learned filters in a setting, by label and ensemble size.

    Of several runs that are called the same, the best on validation data is shown. The curve of a filter trained in
    many settings is a mean over some of them, whatever setting is asked for.

    Parameters
    ----------
    wanted : columns of the table of scores and their values, as in :func:`~assim_lib.study.results.load_scores`.
    """
    rows = _learned(**wanted).sort_values("validation_rmse", kind="stable")
    first = rows.drop_duplicates(["label", "m"])
    names = zip(first.label, first.m, first.checkpoint, strict=True)
    return {f"{label}, m = {m}": training_record(checkpoint).history for label, m, checkpoint in names}


def training_runs(**wanted: Any) -> pd.DataFrame:
    """One row per learned filter: its size, its training time, its origin, and the command that repeats it.

    ``validation_rmse`` of a filter with results in several settings is their geometric mean.

    Parameters
    ----------
    wanted : as for :func:`histories`.
    """
    rows = []
    for checkpoint, results in _learned(**wanted).groupby("checkpoint", sort=False):
        record = training_record(str(checkpoint))
        rows.append(
            {
                "name": Path(str(checkpoint)).stem,
                "updates": record.experiment["updates"],
                "core_minutes": record.core_seconds / 60,
                "validation_rmse": geometric_mean(results.validation_rmse),
                "torch": record.provenance.versions["torch"],
                "command": _command(record.experiment),
            }
        )
    return pd.DataFrame(rows)


def _command(stored: dict[str, Any]) -> str:
    """The command that trains an experiment: what differs from its preset, spelled out."""
    from assim_lib.training.experiment import Experiment, configure  # late: tables do not need PyTorch

    # Options that came later included; wherever it was trained, this machine need not have a GPU.
    experiment = Experiment.model_validate({**stored, "device": "auto"}).model_dump()
    base = configure(experiment["experiment"], **{k: experiment[k] for k in ("preset", "analysis")}).model_dump()
    named = ("preset", "analysis") if experiment["n_settings"] else ("preset", "analysis", "obs_conf")
    options = {k: v for k, v in experiment.items() if v != base[k] or k in named}
    if options.get("training_m", 1) is None:  # which a command cannot say: there, None is what the preset has
        options["training_m"] = experiment["m"]
    words = ["python -m assim_lib train", experiment["experiment"]]
    words += [f"--{k}" if v is True else f"--no-{k}" if v is False else f"--{k} {v}" for k, v in options.items()]
    return " ".join(words)
