"""What the pages show of the stored results: tables that put methods side by side.

Everything here is derived from :mod:`assim_lib.study.results`; nothing is stored.
"""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from assim_lib.evaluation import Scores
from assim_lib.setting import SETTING_COLUMNS, Setting
from assim_lib.storage import data_dir
from assim_lib.study.results import (
    COLUMNS,
    TAUGHT,
    best_of,
    load_scores,
    read_result,
    results_dir,
)
from assim_lib.study.tables import CLASSICAL_MEMBERS, each_kind
from assim_lib.study.trainings import other_seeds

CLASSICAL_METHODS = ("Climatology", "3D-Var", "4D-Var", "LETKF", "LETKF corrected", "iEnKS", "EnKF-N")
LEARNED_MEMBERS, REFERENCE_MEMBERS = 10, 100
LEARNED = ("amortized", "amortized_original", "amortized_ff")
KALMAN = ("hybrid", "covariant", "extended")  # analyses that a network adds to
OURS = ("untrained", "trained", "scratch")
THEIRS = ("classical", "untrained")  # filters that have learned nothing
UNKNOWN = (math.nan, math.nan, math.nan)
# What a table says of a competitor besides its RMSE.
PARTS = {
    "label": "label",
    "m": "m",
    "lo": "rmse_lo",
    "hi": "rmse_hi",
    "validation": "validation_rmse",
    "cost": "ms_per_cycle",
    "checkpoint": "checkpoint",
    "file": "file",
}


def settings_of(table: pd.DataFrame) -> list[Setting]:
    """The setting of each row."""
    return [Setting(*row) for row in table[SETTING_COLUMNS].itertuples(index=False)]


def by_setting(table: pd.DataFrame) -> pd.DataFrame:
    """The same rows, each with the title of its setting as index."""
    return table.set_axis([setting.title for setting in settings_of(table)], axis=0)


def lines_to_beat(setting: Setting, methods: Sequence[str] = ("LETKF",)) -> dict[str, float]:
    """Validation RMSE of the four best tuned ones of some classical methods by label, for a figure of learning curves.

    There are none where nothing is tuned for the setting.
    """
    table = load_scores(**setting.as_dict(), method=list(methods)).query("best").nsmallest(4, "validation_rmse")
    return dict(zip(table.label, table.validation_rmse, strict=True))


def board(setting: Setting) -> pd.DataFrame:
    """What a scoreboard of a setting shows: each tuned classical method and size, and each of our analyses.

    ``kind`` says what it is: classical, a filter with a Kalman part, one learned from nothing, or one that the truth
    has taught. Filters that were trained in many settings are left out.
    """
    scores = load_scores(**setting.as_dict()).query("method not in ['Climatology', 'amortized_any']")
    classical = scores.analysis.isna()
    rows = pd.concat([scores.loc[classical & scores.best], each_kind(scores.loc[~classical])])
    kinds = {True: "ours, with a Kalman part", False: "ours, learned from nothing"}
    kind = rows.analysis.isin(KALMAN).map(kinds).where(rows.analysis.notna(), "classical, tuned")
    return rows.assign(kind=kind.mask(rows.method == TAUGHT, "ours, taught by the truth"))


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
    """One row a setting, by its title: what classical filters reach, and what training adds to them or does alone.

    All of ours are chosen on validation data; the other columns are scores on the test set, ``…_label``, ``…_lo`` and
    ``…_hi`` the filter's name and the bounds of its 95 % interval, ``…_cost`` its milliseconds a cycle while it was
    scored.

    ``published``
        the best published classical score with at most 30 members, where it is one of the same variables.
    ``letkf10``, ``classical``, ``reference``
        the LETKF with 10 members; the best tuned classical filter with at most 30, and with 100.
    ``untrained``
        the best of our Kalman parts before any training: a classical filter too.
    ``rival``
        the better of ``classical`` and ``untrained`` on validation data: what learning has to beat; ``rival_kind``
        is which of them.
    ``trained``
        the best filter that was trained on a Kalman part. ``helped`` is whether training gained something: the paired
        difference to ``untrained`` lies below zero, interval and all.
    ``scratch``
        the best filter with at most 10 members and without a Kalman part: all it does it has learned.
    ``taught``
        the best filter without a Kalman part whose teacher was the truth itself: no rival.
    ``learned``
        the better of ``trained`` and ``scratch``, on validation data; one that training did not help is none.
        ``ratio`` is its RMSE over that of ``rival``; ``difference`` is their paired difference, ``verdict`` whether
        it lies below zero, interval and all (``ahead``), above it (``behind``) or neither (``level``), empty where
        there is nothing to compare; ``closed`` is the share of the way from ``letkf10`` to ``reference``.
    ``ours``
        whatever of ours is best on validation data, trained or not; ``ours_verdict`` is about its difference
        to ``classical``.
    """
    table = load_scores().query("not diverged and validation_rmse.notna()")
    filters = table.method.isin(CLASSICAL_METHODS[1:])  # the climatology only marks the scale
    one_setting = table.method.isin(LEARNED) & (table.m <= LEARNED_MEMBERS)
    kalman = table.analysis.isin(KALMAN)
    untrained = {part: table[f"untrained_{part}"] for part in ("rmse", "validation_rmse")}
    before = table.assign(**untrained, rmse_lo=math.nan, rmse_hi=math.nan).dropna(subset="validation_rmse")
    competitors = {
        "letkf10": table.loc[(table.method == "LETKF") & (table.m == LEARNED_MEMBERS)],
        "classical": table.loc[filters & (table.m <= CLASSICAL_MEMBERS)],
        "reference": table.loc[filters & (table.m >= REFERENCE_MEMBERS)],
        "untrained": before.loc[one_setting & kalman],
        "trained": table.loc[one_setting & kalman],
        "scratch": table.loc[one_setting & ~kalman],
        "taught": table.loc[(table.method == TAUGHT) & ~kalman],
    }
    rows = table.loc[:, SETTING_COLUMNS].drop_duplicates().merge(_best_published(), on=SETTING_COLUMNS, how="left")
    rows = rows.set_index(SETTING_COLUMNS)
    for name, candidates in competitors.items():
        rows = rows.join(_best(candidates, name))
    rows["helped"] = [pair[2] < 0 for pair in _pairs(rows, "trained", "untrained")]
    alone = ~rows.helped | (rows.scratch_validation < rows.trained_validation)
    for part in ("", *(f"_{part}" for part in PARTS)):
        rows[f"learned{part}"] = rows[f"scratch{part}"].where(alone, rows[f"trained{part}"])
    _choose(rows, "rival", THEIRS)
    rows["rival_label"] += (rows.rival_kind == "untrained").map({True: ", untrained", False: ""})
    pairs = _pairs(rows, "learned", "rival")
    rows[["difference", "difference_lo", "difference_hi"]] = pairs
    rows["verdict"] = [_verdict(pair) for pair in pairs]
    rows["ratio"] = rows.learned / rows.rival
    rows["closed"] = (rows.letkf10 - rows.learned) / (rows.letkf10 - rows.reference)
    _choose(rows, "ours", OURS)
    rows["ours_verdict"] = [_verdict(pair) for pair in _pairs(rows, "ours", "classical")]
    return by_setting(rows.reset_index())


def repeated(table: pd.DataFrame) -> pd.DataFrame:
    """The learned filters of some settings, trained again with other seeds; by the title of the setting.

    Args:
        table: rows of :func:`headline`.

    Returns:
        the rows of the table of scores, and ``verdict`` beside the rival, as there.
    """
    again = []
    for title, row in table.dropna(subset="learned_checkpoint").iterrows():
        rival = _scores(row.rival_file, row.rival_kind)
        for other in other_seeds(row.learned_checkpoint).to_dict("records"):
            again.append({"setting": title, **other, "verdict": _verdict(_difference(_scores(other["file"]), rival))})
    columns = ["setting", *COLUMNS, "verdict"]
    return pd.DataFrame(again, columns=columns).set_index("setting")


def _choose(rows: pd.DataFrame, name: str, kinds: tuple[str, ...]) -> None:
    """Add the competitor that is best on the validation data of each setting, under another name."""
    errors = rows[[f"{kind}_validation" for kind in kinds]].fillna(math.inf)
    rows[f"{name}_kind"] = [kinds[k] for k in errors.to_numpy().argmin(1)]
    chosen = list(zip(rows[f"{name}_kind"], rows.to_dict("records"), strict=True))
    for part in ("", "_file", "_label"):
        rows[f"{name}{part}"] = [row[f"{kind}{part}"] for kind, row in chosen]


def _pairs(rows: pd.DataFrame, ours: str, theirs: str) -> list[tuple[float, float, float]]:
    """The paired difference of two competitors in each setting."""
    stored = [
        [_scores(row[f"{name}_file"], row.get(f"{name}_kind", name)) for name in (ours, theirs)]
        for row in rows.to_dict("records")
    ]
    return [_difference(*pair) for pair in stored]


def _scores(file: Any, kind: str = "") -> Scores | None:
    """What a result says of the test set: of the filter, or of what it was before any training."""
    if pd.isna(file):
        return None
    result = read_result(results_dir() / file)
    return result.untrained if kind == "untrained" else result.test


def _difference(ours: Scores | None, theirs: Scores | None) -> tuple[float, float, float]:
    """The paired difference of two scores; NaN where there is none, or one was stored without its blocks."""
    return ours.minus(theirs) if ours and theirs and ours.blocks and theirs.blocks else UNKNOWN


def _verdict(difference: tuple[float, float, float]) -> str:
    mean, low, high = difference
    if math.isnan(mean):
        return ""
    return "ahead" if high < 0 else "behind" if low > 0 else "level"


def _best_published() -> pd.DataFrame:
    published = load_published()
    rivals = published.method.isin(CLASSICAL_METHODS[1:]) & (published.m <= CLASSICAL_MEMBERS)
    # Those of the two-level system are averages over its fast variables as well.
    published = published[rivals & (published.system != "two_level")]
    return pd.DataFrame(published.groupby(SETTING_COLUMNS, as_index=False).agg(published=("rmse", "min")))


def _best(candidates: pd.DataFrame, name: str) -> pd.DataFrame:
    """Of each setting the candidate with the lowest validation error, its columns named after the competitor."""
    best = best_of(candidates).set_index(SETTING_COLUMNS)
    columns = {"rmse": name} | {column: f"{name}_{part}" for part, column in PARTS.items()}
    return pd.DataFrame(best[list(columns)]).rename(columns=columns)
