"""What a filter carries from one part of a record to the next: kept in a file, for a run that goes on another day."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from assim_lib.filter import Carry
from assim_lib.own.clock import Clock
from assim_lib.storage import IntegrityError, atomic_path


@dataclass(frozen=True)
class FilterState:
    """Where a filter stands after a cycle.

    Attributes
    ----------
    carry : what it knows before the next observation.
    forecast_variance : (channel, site), of the forecast of that observation; NaN where not known.
    random : state of the generator of dropout and drawn members.
    number : of the next cycle in the observation schedule.
    age : number of cycles since the cold start.
    clock : the time of the last cycle; None before the first.
    filter, weights : its name, and SHA-256 of its weights; "" of a filter from no file.
    options : that the filter is used with, other than those it was trained with.
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
    # Without a lag, base and forecast are one tensor, and a file holds none twice.
    tensors = {name: part.detach().cpu().contiguous().clone() for name, part in tensors.items()}
    content = {name: getattr(state, name) for name in ("number", "age", "filter", "weights", "options")}
    described = json.dumps({**content, "clock": asdict(state.clock) if state.clock else None})
    header = {"state": described, "sha256": _checksum(tensors, described)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, header)


def load_state(path: Path) -> FilterState:
    """Read a state.

    Raises
    ------
    IntegrityError : if the file is no state, or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if header["sha256"] != _checksum(tensors, header["state"]):
            raise ValueError
        content = json.loads(header["state"])
        clock = content.pop("clock")
        parts = {name.removeprefix("carry."): part for name, part in tensors.items() if name.startswith("carry.")}
        return FilterState(
            Carry(**parts), tensors["forecast_variance"], tensors["random"], clock=clock and Clock(**clock), **content
        )
    except (SafetensorError, KeyError, TypeError, ValueError, OSError):
        raise IntegrityError(
            f"{path.name} is no state of a filter, or damaged; remove it to begin again, or restore a copy."
        ) from None


def _checksum(tensors: dict[str, Tensor], described: str) -> str:
    digest = hashlib.sha256(described.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        digest.update(tensors[name].view(torch.uint8).numpy().tobytes() if tensors[name].ndim else b"")
    return digest.hexdigest()
