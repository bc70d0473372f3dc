"""Trained filters as files: weights in safetensors, which hold no code, and a training log in JSON beside them."""

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from assim_lib.analyses import ANALYSES, Normalization
from assim_lib.filter import AmortizedFilter
from assim_lib.setting import Setting
from assim_lib.storage import IntegrityError, OtherRunError, atomic_path, data_dir, sha256, verify, write_json
from assim_lib.tensor_files import load_tensors
from assim_lib.training.build import build_filter
from assim_lib.training.experiment import Experiment, ParameterError, validated

# Options that the shapes of a filter's weights may follow from.
SHAPING = (
    *("analysis", "network", "hidden_size", "blocks", "kernel", "memory", "lag", "obs_conf"),
    *("band", "tendency", "sees_error", "sees_gradient", "sees_window"),
)


UNITS = "units."  # of the network's features: a filter that was trained further may have those of another climatology


def checkpoint_path(name: str, folder: Path | str | None = None) -> Path:
    """Where the weights of a filter are stored, by its name or that of their file."""
    return Path(folder or data_dir() / "checkpoints") / f"{name.removesuffix('.safetensors')}.safetensors"


def save_checkpoint(model: AmortizedFilter, path: Path, log: dict[str, Any]) -> None:
    """Write a trained filter: weights as safetensors, and the training log with their SHA-256, in JSON, beside them.

    The log is renamed into place last: a reader who finds a new one finds its weights.
    """
    with atomic_path(path) as temporary:
        # Weights that a network uses twice are two tensors in a file.
        tensors = model.state_dict() | {f"{UNITS}{name}": part for name, part in _units_of(model)._asdict().items()}
        save_file({name: part.detach().cpu().contiguous().clone() for name, part in tensors.items()}, temporary)
        checksum = sha256(temporary)
    write_json(path.with_suffix(".json"), {"sha256": checksum, **log})


def _units_of(model: AmortizedFilter) -> Normalization:
    return Normalization(model.analysis.mean, model.analysis.std)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the log of a checkpoint, its checksum verified.

    Raises:
        FileNotFoundError: if the weights or their log are missing.
        IntegrityError: if the weights are not those of the log.
    """
    log = stored_log(path)
    if "sha256" not in log:
        raise IntegrityError(f"{path.stem}.json has no sha256; the checkpoint cannot be verified.")
    verify(path, str(log["sha256"]))
    return load_tensors(path, "weights of a filter")[1], log


def stored_log(path: Path) -> dict[str, Any]:
    """The log beside weights, as it stands there; the weights are not read.

    Raises:
        FileNotFoundError: if the weights or their log are missing.
        IntegrityError: if it is no JSON object.
    """
    sidecar = path.with_suffix(".json")
    if not (path.exists() and sidecar.exists()):
        raise FileNotFoundError(
            f"no checkpoint {path.stem} in {path.parent.name}: both its weights and its training log are needed."
        )
    try:
        log = json.loads(sidecar.read_bytes())
    except ValueError:  # also of what is no text
        log = None
    if not isinstance(log, dict):
        raise IntegrityError(f"{sidecar.name} is no training log; restore it from the repository.")
    return log


def known_filter(name: str | Path, folder: str | Path | None = None) -> Path:
    """The path of a filter's weights.

    Args:
        name: of a filter in ``data/checkpoints``, or another ``folder``; or a path, which ends in ``.safetensors``. A
            text is a path if it does so, or has a slash.

    Raises:
        ParameterError: if there is no such filter.
    """
    if not isinstance(name, str | Path):
        raise ParameterError(f"name = {name!r} of type {type(name).__name__} must be that of a filter, or a path.")
    if isinstance(name, Path) or "/" in name or name.endswith(".safetensors"):
        name = Path(name).expanduser()
        if name.suffix != ".safetensors":
            raise ParameterError(f"name = {str(name)!r} must be the path of weights, which ends in .safetensors.")
        return name
    folder = data_dir() / "checkpoints" if folder is None else Path(folder).expanduser()
    known = sorted(path.stem for path in folder.glob("*.safetensors"))
    if name not in known:
        close = get_close_matches(name, known, n=1, cutoff=0.3)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ParameterError(f"name = {name!r} is no known filter: {hint}there are {len(known)} in {folder.name}.")
    return checkpoint_path(name, folder)


def load_filter(path: Path | str, **changed: Any) -> tuple[Experiment, AmortizedFilter]:
    """A trained filter and its experiment, from a checkpoint, on the CPU or the GPU that is there.

    Args:
        path: of the weights; or, as a text, the name of a stored filter.
        changed: options that differ from those it was trained with, e.g. ``noise=2.0``. With a ``system`` of another
            number of sites, the climatology is simulated again; networks that treat all sites alike can have one.

    Raises:
        ParameterError: if there is no filter of that name, or it cannot have them.
        IntegrityError: if the weights are damaged.
    """
    path = known_filter(path)
    weights, log = load_checkpoint(path)
    trained = stored_experiment(log)
    refuse_renamed(path, trained)
    for option in ANALYSES[trained.analysis].kept:
        if changed.get(option, (theirs := getattr(trained, option))) != theirs:
            raise ParameterError(
                f"{option} = {changed[option]!r} is what analysis = {trained.analysis!r} starts its training with, and "
                f"{path.stem} has come out of it with its own; leave it out."
            )
    experiment = trained.changed(**changed)
    asked = ", ".join(f"{name} = {value!r}" for name, value in changed.items() if value != getattr(trained, name, None))
    return experiment, _with_weights(experiment, weights, f"{asked or experiment.name}: the weights of {path.stem}")


def scored_filter(setting: Setting, checkpoint: str) -> tuple[Experiment, AmortizedFilter]:
    """A stored filter in a setting that it was scored in, also one of many settings."""
    return load_filter(checkpoint_path(checkpoint), **setting.as_dict(), n_settings=0)


def refuse_renamed(path: Path, experiment: Experiment) -> None:
    """Raise :class:`ParameterError` unless a filter has the name of its file: files of results are called after it."""
    if experiment.name != path.stem:
        raise ParameterError(f"{path.name} holds the filter {experiment.name!r}; a filter has the name of its file.")


def pretrained_filter(experiment: Experiment) -> AmortizedFilter:
    """The filter of an experiment with the weights that ``experiment.pretrained`` names.

    Raises:
        FileNotFoundError: if there is no such filter.
        ParameterError: if its weights are of another shape.
    """
    name = experiment.pretrained
    weights, log = load_checkpoint(checkpoint_path(name))
    theirs, ours = stored_experiment(log).model_dump(), experiment.model_dump()
    differ = [f"{option} = {theirs[option]!r}" for option in SHAPING if theirs[option] != ours[option]]
    whose = f"pretrained = {name!r} with {', '.join(differ)}" if differ else f"pretrained = {name!r}"
    return _with_weights(experiment, weights, f"{whose}: its weights", further=True)


def _with_weights(
    experiment: Experiment, weights: dict[str, Tensor], whose: str, further: bool = False
) -> AmortizedFilter:
    """A filter with weights that were read; ``further`` if it may have to learn a displacement yet."""
    trained_in, dynamics = weights.get("climatology"), experiment.forecast_model
    stored = {name.removeprefix(UNITS): part for name, part in weights.items() if name.startswith(UNITS)}
    weights = {name: part for name, part in weights.items() if not name.startswith(UNITS)}
    # Older files have none; theirs are those of the climatology.
    units = Normalization(**stored) if stored else None if trained_in is None else Normalization.of(trained_in)
    same_ring = trained_in is not None and trained_in.shape[1:] == (dynamics.channels, dynamics.sites)
    model = build_filter(experiment, trained_in if same_ring else None, units)
    if further and model.displacement is not None:
        weights = {f"displacement.{name}": part for name, part in model.displacement.state_dict().items()} | weights
    try:
        model.load_state_dict(weights | {"climatology": model.climatology})
    except RuntimeError:  # of missing ones as well
        raise ParameterError(f"{whose} are of another shape; train one from nothing.") from None
    return model.eval()


def stored_experiment(log: dict[str, Any]) -> Experiment:
    """The experiment of a training log. Wherever it was trained, this machine need not have a GPU.

    Raises:
        ParameterError: if its options are none of a run.
        IntegrityError: if it has none.
    """
    options = log.get("experiment")
    if not isinstance(options, dict):
        raise IntegrityError("a training log without the options of its experiment is none; restore it.")
    try:
        return validated({**options, "device": "auto"})
    except ParameterError as error:
        if "is not registered" not in str(error):
            raise
        said = str(error).rstrip(".")
        raise ParameterError(f"{said}; if it is your own, give the plugin that registers it (--plugins).") from None


def read_state(path: Path, experiment: Experiment) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of what :meth:`Trainer.save` wrote.

    Raises:
        OtherRunError: if the file belongs to a run with other options.
        IntegrityError: if it is no such file, or damaged.
    """
    header, tensors = load_tensors(path, "state of a run")
    try:
        same = Experiment.model_validate_json(header.get("experiment", "")) == experiment
    except ValidationError:
        same = False
    if not same:
        raise OtherRunError(f"{path} belongs to a run with other options; choose another folder, or remove it.")
    return header, tensors


def is_finished(path: Path) -> bool:
    """Whether a state, see :func:`read_state`, is that of a run which came to its end."""
    header, _ = load_tensors(path, "state of a run")
    try:
        return json.loads(header["progress"])["update"] >= json.loads(header["experiment"])["updates"]
    except (KeyError, TypeError, ValueError):
        return False
