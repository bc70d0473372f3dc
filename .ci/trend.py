"""The goals of the page on costs, a line a run: `python .ci/trend.py FILE` appends one, `--table` prints all."""

import json
import sys
from pathlib import Path

import pandas as pd

from assim_lib.study.cost import goals
from assim_lib.study.cost.measuring import Costs, cost_path


def line() -> str:
    """The commit and what is measured of each goal, as JSON."""
    run = Costs.read(cost_path("cycles"))
    measured = {goal.what: round(goal.measured, 4) for goal in goals.goals()}
    return json.dumps({"commit": run.provenance.commit, "processor": run.machine.processor, **measured})


def table(path: Path) -> str:
    """All lines, newest first, one column each, as a Markdown table."""
    runs = pd.DataFrame([json.loads(text) for text in path.read_text().splitlines()])
    columns = runs.set_index("commit").T.iloc[:, ::-1]
    rows = [["", *columns.columns], *([name, *map(str, values)] for name, *values in columns.itertuples(name=None))]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    *options, name = sys.argv[1:]
    if options == ["--table"]:
        print(table(Path(name)))
    else:
        with Path(name).open("a") as file:
            file.write(line() + "\n")
