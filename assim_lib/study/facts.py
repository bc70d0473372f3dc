"""What a page found, in a sentence with figures: computed from the stored scores whenever the page is made."""

from typing import Any

import pandas as pd
from IPython.display import Markdown, display

from assim_lib.setting import Setting
from assim_lib.study.results import TAUGHT, best_of, load_scores
from assim_lib.study.summaries import CLASSICAL_METHODS, KALMAN, headline
from assim_lib.study.tables import CLASSICAL_MEMBERS, short, with_interval

MOVING_QUARTER = Setting("l96", "every_4th_dim_partial_obs")
VERDICTS = ("ahead", "level", "behind")
FIXED_QUARTER = Setting("l96", "every_4th_fixed", step_size=0.15)
TWO_LEVEL = Setting("two_level")
NOISY_QUARTER = Setting("l96", "every_4th_dim_partial_obs", noise=2.5)


def say(*sentences: str) -> None:
    """Show sentences in Markdown as what a page found."""
    display(Markdown("**Found:** " + " ".join(sentences)))


def best(setting: Setting, **wanted: Any) -> pd.Series:
    """The run of a setting that is best on validation data, of those that have the wanted values.

    One that the truth has taught has to be asked for by its method.

    Raises:
        ValueError: if there is none; the sentence repeats what was wanted.
    """
    rows = load_scores(**setting.as_dict(), **wanted).dropna(subset="rmse")
    rows = best_of(rows if "method" in wanted else pd.DataFrame(rows[rows.method != TAUGHT]))
    if rows.empty:
        raise ValueError(f"no score is stored for {setting.title} with {wanted}.")
    return rows.iloc[0]


def best_classical(setting: Setting) -> pd.Series:
    """The best tuned classical filter of a setting with at most 30 members."""
    rows = load_scores(**setting.as_dict())
    methods = [name for name in CLASSICAL_METHODS[1:] if name in set(rows.method)]
    return best(setting, method=methods, m=list(range(1, CLASSICAL_MEMBERS + 1)))


def error(row: pd.Series, interval: bool = True) -> str:
    """The RMSE of a run, with its interval."""
    return with_interval(row.rmse, row.rmse_lo, row.rmse_hi) if interval else short(row.rmse)


def side(first: float, second: float) -> str:
    """Where the first of two errors lies: below or above the second."""
    return "below" if first < second else "above"


def score_of_training(setting: Setting) -> tuple[str, str]:
    """RMSE of the best filter with a Kalman part, before and after its training."""
    row = best(setting, analysis=list(KALMAN), method="amortized")
    return short(row.untrained_rmse), short(row.rmse)


def facts() -> dict[str, str]:
    """Figures that pages without code name as ``{{ name }}``."""
    from assim_lib.study import paper  # it draws on this module's neighbours, and few need it

    full, original = Setting("l96"), ["original", "gated"]
    (row,) = paper.reproduction().dropna(subset="published").to_dict("records")
    table = headline().dropna(subset="classical")
    extended = best(full, analysis="extended", method="amortized")
    before, after = score_of_training(FIXED_QUARTER)
    scratch = best(MOVING_QUARTER, analysis=["recurrent", *original], method=["amortized", "amortized_original"])
    letkfs = load_scores(**MOVING_QUARTER.as_dict(), method="LETKF", best=True).query(f"m <= {CLASSICAL_MEMBERS}")
    quarter = table.loc[MOVING_QUARTER.title]
    alone, rival = best(NOISY_QUARTER, analysis="recurrent", method="amortized"), best_classical(NOISY_QUARTER)
    wrong, corrected = best(TWO_LEVEL, method="amortized"), best(TWO_LEVEL, method="LETKF corrected")
    return {
        "letkf10_full": error(best(full, method="LETKF", m=10)),
        "classical_full": error(best_classical(full)),
        "paper_published": short(row["published"]),
        "paper_here": short(min(row["original"], row["gated"])),
        "paper_network": short(row["original"]),
        "paper_full": error(best(full, analysis=original, method=["amortized", "amortized_original"])),
        "extended_full": error(extended),
        "extended_full_untrained": short(extended.untrained_rmse),
        "fixed_untrained": before,
        "fixed_trained": after,
        "scratch_quarter": error(scratch),
        "scratch_quarter_crps": short(scratch.crps),
        "letkf_quarter": short(letkfs.rmse.min()),
        "letkf_quarter_crps": short(letkfs.crps.min()),
        "untrained_quarter": short(quarter.untrained),
        "classical_quarter": error(best_classical(MOVING_QUARTER)),
        "classical_quarter_label": str(best_classical(MOVING_QUARTER).label),
        "scratch_side": side(scratch.rmse, letkfs.rmse.min()),
        "scratch_crps_side": "ahead of" if scratch.crps < letkfs.crps.min() else "behind",
        "noisy_scratch": error(alone),
        "noisy_scratch_short": short(alone.rmse),
        "noisy_scratch_crps": short(alone.crps),
        "noisy_classical": error(rival),
        "noisy_classical_short": short(rival.rmse),
        "noisy_classical_crps": short(rival.crps),
        "noisy_classical_label": str(rival.label),
        "wrong_model": error(wrong),
        "wrong_model_short": short(wrong.rmse),
        "wrong_model_crps": short(wrong.crps),
        "corrected_model": error(corrected),
        "corrected_model_short": short(corrected.rmse),
        "corrected_model_crps": short(corrected.crps),
        "settings": str(len(table)),
        **{verdict: str(int((table.verdict == verdict).sum())) for verdict in VERDICTS},
        "undecided": str(int((table.verdict == "").sum())),
        **{f"ours_{verdict}": str(int((table.ours_verdict == verdict).sum())) for verdict in VERDICTS},
        "helped": str(int(table.helped.sum())),
        "trained_settings": str(int(table.trained.notna().sum())),
    }
