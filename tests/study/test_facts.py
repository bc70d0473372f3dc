"""What pages say they found: figures of the stored scores, in the form that readers get."""

import pandas as pd
import pytest
from IPython.display import Markdown

from assim_lib.setting import Setting
from assim_lib.study import facts, tables
from assim_lib.study.results import load_scores


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ((0.6178, 0.605, 0.6304), ".618 [.605, .630]"),
        ((0.63,), ".630"),
        ((1.03, 0.99, 1.07), "1.030 [.990, 1.070]"),
        ((float("nan"),) * 3, "–"),
    ],
)
def test_an_error_is_shown_with_its_interval(row: tuple[float, ...], shown: str):
    assert tables.with_interval(*row) == shown


def test_the_best_of_each_row_is_bold_and_gaps_are_dashes():
    table = pd.DataFrame({"a": [0.3, float("nan")], "b": [0.2, 0.5], "c": [0.1, 0.4]}, index=["x", "y"])
    shown = tables.markdown(table, "Caption", best=["a", "b"])
    assert isinstance(shown, Markdown)
    assert shown.data.splitlines() == [
        "*Caption*",
        "",
        "|  | a | b | c |",
        "| :--- | ---: | ---: | ---: |",
        "| x | .300 | **.200** | .100 |",
        "| y | – | .500 | .400 |",
    ]


def test_words_stand_on_the_left():
    table = pd.DataFrame({"filter": ["hybrid", "–"], "error": [0.3, 0.2], "change": ["+3 %", "**.2** [.1, .3]"]})
    assert tables.markdown(table, "").data.splitlines()[3] == "| :--- | :--- | ---: | ---: |"


def test_a_readers_table_has_the_best_run_of_each_kind():
    scores = load_scores(**Setting("l96").as_dict())
    shown = tables.best_of_each(scores)
    assert shown.index.is_unique
    assert {"LETKF m=30", "4D-Var"} <= set(shown.index)
    letkf = scores.query("method == 'LETKF'")
    assert f"LETKF m={letkf.m[letkf.validation_rmse.idxmin()]}" in shown.index
    assert pd.isna(shown.spread["4D-Var"])
    assert shown.RMSE.str.fullmatch(r"\d*\.\d{3} \[\d*\.\d{3}, \d*\.\d{3}\]").all()


def test_the_best_run_is_chosen_on_validation_data():
    rows = load_scores(**Setting("l96").as_dict(), method="LETKF")
    assert facts.best(Setting("l96"), method="LETKF").rmse == rows.rmse[rows.validation_rmse.idxmin()]
    with pytest.raises(ValueError, match="no score is stored for L96"):
        facts.best(Setting("l96"), method="nobody")


def test_a_hundred_members_are_no_rival():
    assert facts.best_classical(Setting("l96")).m <= 30


def test_each_fact_of_a_page_is_a_short_text():
    found = facts.facts()
    assert all(isinstance(text, str) and 0 < len(text) < 30 for text in found.values())
    assert found["letkf10_full"] == facts.error(facts.best(Setting("l96"), method="LETKF", m=10))
