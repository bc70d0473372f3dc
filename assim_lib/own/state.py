"""What a filter carries from one part of a record to the next: kept in a file, for a run that goes on another day."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from assim_lib.filter import Carry
from assim_lib.own.clock import Clock
from assim_lib.storage import IntegrityError
from assim_lib.tensor_files import load_tensors, save_tensors

WHAT = "state of a filter"


@dataclass(frozen=True)
class FilterState:
    """Where a filter stands after a cycle.

    Attributes:
        carry: what it knows before the next observation.
        forecast_variance: (channel, site), of the forecast of that observation; NaN where not known.
        random: state of the generator of dropout and drawn members.
        number: of the next cycle in the observation schedule.
        age: number of cycles since the cold start.
        clock: the time of the last cycle; None before the first.
        filter: its name; "" of a filter from no file.
        weights: SHA-256 of its weights, likewise.
        options: that the filter is used with, other than those it was trained with.
    """

    carry: Carry
    forecast_variance: Tensor
    random: Tensor
    number: int
    age: int
    clock: Clock | None = None
    filter: str = ""
    weights: str = ""
    options: str = ""


def save_state(state: FilterState, path: Path) -> None:
    """Write a state, atomically."""
    tensors = {f"carry.{name}": part for name, part in state.carry.tensors().items()}
    tensors |= {"forecast_variance": state.forecast_variance, "random": state.random}
    content = {name: getattr(state, name) for name in ("number", "age", "filter", "weights", "options")}
    described = json.dumps({**content, "clock": asdict(state.clock) if state.clock else None})
    save_tensors(path, tensors, {"state": described})


def load_state(path: Path) -> FilterState:
    """Read a state.

    Raises:
        IntegrityError: if the file is no state, or damaged.
    """
    header, tensors = load_tensors(path, WHAT)
    try:
        content = json.loads(header["state"])
        clock = content.pop("clock")
        parts = {name.removeprefix("carry."): part for name, part in tensors.items() if name.startswith("carry.")}
        return FilterState(
            Carry(**parts), tensors["forecast_variance"], tensors["random"], clock=clock and Clock(**clock), **content
        )
    except (KeyError, TypeError, ValueError):
        raise IntegrityError(f"{path} is no {WHAT}, or damaged; remove it to begin again, or restore a copy.") from None
