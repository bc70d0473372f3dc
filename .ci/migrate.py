"""Rename what is in the stored JSON files: `python .ci/migrate.py [FOLDER]`, the project's data by default.

- results: `settings` of DAPPER's methods are `hyperparameters`; what the record of a checkpoint says already is left
  out, and `provenance` is that of the scores.
- tuning: `settings` are `hyperparameters`.
- checkpoints, ablation: the options `settings` and `growth` are `n_settings` and `lag_warmup`; `threads` is no option
  of an experiment any more.

Each file is replaced at once, and only if something in it changes: to run this twice is to run it once. No number is
changed, and no file of weights touched.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assim_lib.storage import data_dir, write_json

OPTIONS = {"settings": "n_settings", "growth": "lag_warmup", "threads": None}
HYPERPARAMETERS = {"settings": "hyperparameters"}


def renamed(content: dict[str, Any], names: Mapping[str, str | None]) -> dict[str, Any]:
    """The same values in the same order, some under other names; those whose new name is None are left out."""
    new_names = {name: names.get(name, name) for name in content}
    return {new: content[name] for name, new in new_names.items() if new is not None}


def result(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A result without what is in the record of its checkpoint; refuses to lose anything that is not."""
    if "baseline" in content:
        content = content | {"baseline": renamed(content["baseline"], HYPERPARAMETERS)}
    if "failed" in content:
        content = content | {"failed": [renamed(failure, HYPERPARAMETERS) for failure in content["failed"]]}
    if "history" not in content:
        return content
    record = experiment(json.loads((folder / "checkpoints" / content["checkpoint"]).with_suffix(".json").read_text()))
    for name, value in experiment(content).items():
        if name in record and value != record[name]:
            raise SystemExit(f"{name} of {content['checkpoint']} differs between its result and its record.")
    # A filter that was never scored again was scored when it was trained.
    repeated = record.keys() - ({"provenance"} if "scored" not in content else set())
    return renamed({k: v for k, v in content.items() if k not in repeated}, {"scored": "provenance"})


def trials(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The trials of a search."""
    return content | {"trials": [renamed(trial, HYPERPARAMETERS) for trial in content["trials"]]}


def experiment(content: dict[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """What holds the options of an experiment, or those that a variant of it changes."""
    return content | {key: renamed(content[key], OPTIONS) for key in ("experiment", "changed") if key in content}


def main(folder: Path) -> None:
    """Bring all files of a data folder up to date."""
    kinds = {"results": result, "tuning": trials, "checkpoints": experiment, "ablation": experiment}
    for name, migrated in kinds.items():
        changed = 0
        for path in sorted((folder / name).glob("*.json")):
            before = path.read_text()
            after = migrated(json.loads(before), folder)
            if json.dumps(after) != json.dumps(json.loads(before)):
                write_json(path, after)
                changed += 1
        print(f"{name}: {changed} files changed")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else data_dir())
