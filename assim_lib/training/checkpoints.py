"""Trained filters as files: weights in safetensors, which hold no code, and a JSON record beside them."""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from assim_lib.analyses import Normalization
from assim_lib.filter import AmortizedFilter
from assim_lib.storage import IntegrityError, atomic_path, data_dir, sha256, verify, write_json
from assim_lib.training.build import build_filter
from assim_lib.training.experiment import Experiment, ParameterError, validated


def checkpoint_path(name: str, folder: Path | None = None) -> Path:
    """Where the weights of a filter are stored."""
    return (folder or data_dir() / "checkpoints") / f"{name}.safetensors"


def save_checkpoint(model: AmortizedFilter, path: Path, record: dict[str, Any]) -> None:
    """Write a trained filter: weights as safetensors, and a JSON record with their SHA-256 beside them.

    The record is renamed into place last: a reader who finds a new one finds its weights.
    """
    with atomic_path(path) as temporary:
        save_file({k: v.contiguous().cpu() for k, v in model.state_dict().items()}, temporary)
        checksum = sha256(temporary)
    write_json(path.with_suffix(".json"), {"sha256": checksum, **record})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the record of a checkpoint, its checksum verified.

    Raises
    ------
    FileNotFoundError : if the weights or their record are missing.
    IntegrityError : if the weights are not those of the record.
    """
    sidecar = path.with_suffix(".json")
    if not (path.exists() and sidecar.exists()):
        raise FileNotFoundError(
            f"no checkpoint {path.stem} in {path.parent.name}: both its weights and its JSON record are needed."
        )
    record = json.loads(sidecar.read_text())
    if "sha256" not in record:
        raise IntegrityError(f"{sidecar.name} has no sha256; the checkpoint cannot be verified.")
    verify(path, record["sha256"])
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, record


def load_filter(path: Path, **changed: Any) -> tuple[Experiment, AmortizedFilter]:
    """A trained filter and its experiment, from a checkpoint, on the CPU or the GPU that is there.

    Parameters
    ----------
    changed : options that differ from those it was trained with, e.g. ``noise=2.0``. With a ``system`` of another
        number of sites, the climatology is simulated again; networks that treat all sites alike can have one.

    Raises
    ------
    ParameterError : if the filter cannot have them.
    """
    weights, record = load_checkpoint(path)
    experiment = stored_experiment(record).changed(**changed)
    asked = ", ".join(f"{name} = {value!r}" for name, value in changed.items())
    return experiment, _with_weights(experiment, weights, f"{asked or experiment.name}: the weights of {path.stem}")


def pretrained_filter(experiment: Experiment) -> AmortizedFilter:
    """The filter of an experiment with the weights that ``experiment.pretrained`` names.

    Raises
    ------
    FileNotFoundError : if there is no such filter.
    ParameterError : if its weights are of another shape.
    """
    name = experiment.pretrained
    return _with_weights(experiment, load_checkpoint(checkpoint_path(name))[0], f"pretrained = {name!r}: its weights")


def _with_weights(experiment: Experiment, weights: dict[str, Tensor], whose: str) -> AmortizedFilter:
    stored = weights["climatology"]
    if stored.shape[-1] == experiment.forecast_model.sites:
        model = build_filter(experiment, stored)
    else:
        model = build_filter(experiment, normalization=Normalization.of(stored))
        weights = weights | {"climatology": model.climatology}
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise ParameterError(f"{whose} are of another shape; train one from nothing.") from None
    return model.eval()


def stored_experiment(record: dict[str, Any]) -> Experiment:
    """The experiment of a record. Wherever it was trained, this machine need not have a GPU.

    Raises
    ------
    ParameterError : if its options are none of a run.
    """
    return validated({**record["experiment"], "device": "auto"})


def read_state(path: Path, experiment: Experiment) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of what :meth:`Trainer.save` wrote.

    Raises
    ------
    ValueError : if the file belongs to a run with other options.
    """
    with safe_open(path, "pt") as file:
        header = file.metadata()
        if Experiment.model_validate_json(header["experiment"]) != experiment:
            raise ValueError(f"{path} belongs to a run with other options; choose another folder, or remove it.")
        return header, {name: file.get_tensor(name) for name in file.keys()}
