"""Where files live, and how they are written so that nothing is ever half there.

Every file of a result, checkpoint or cache goes through :func:`atomic_path`: the content is written under a temporary
name in the same folder and renamed when complete, so that a reader (or an interrupted run) sees the old file or the new
one, never a torn one. Folders (Zarr) go through :func:`atomic_folder`; to replace one takes two renames. What a sweep
writes to an object store, that store makes visible when it is whole. Checksums are SHA-256, in the format of the
``sha256sum`` tool, so that they can be verified without this library.
"""

import glob
import hashlib
import io
import json
import math
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from tempfile import NamedTemporaryFile, mkdtemp
from typing import Any

from assim_lib.mistakes import Mistake

PACKAGE = Path(__file__).parent
STALE = 86_400  # seconds after which a temporary file is one that a killed run left behind
VERSIONED = ("torch", "numpy", "scipy", "torchdiffeq", "dapper", "safetensors")


class IntegrityError(RuntimeError):
    """A stored file is missing, damaged, or not what it is called."""


class OtherRunError(Mistake):
    """What is stored belongs to a run with other options."""


def data_dir() -> Path:
    """The folder of frozen test sets, checkpoints and results.

    The environment variable ``ASSIM_DATA`` names it. Without one it is the top-level ``data`` of a checkout; in an
    installed package, the copy that travels inside it.
    """
    if named := os.environ.get("ASSIM_DATA"):
        return Path(named).expanduser()
    checkout = PACKAGE.parent / "data"
    return checkout if checkout.is_dir() else PACKAGE / "_data"


def cache_dir() -> Path:
    """The folder for files that can be made again (``ASSIM_CACHE``, or ``~/.cache/assim_lib``)."""
    return Path(os.environ.get("ASSIM_CACHE") or "~/.cache/assim_lib").expanduser()


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds, else remove it.

    It ends in ``.tmp``, so that nobody who lists the folder's files by their ending meets it. Those that killed runs
    left a day ago or longer are removed.

    Raises:
        OSError: if it cannot be written; it names ``path``.
    """
    path = Path(path)
    try:
        with _temporary(path) as temporary:
            yield temporary
    except OSError as error:
        # A full disk names no file, and the name of the temporary one says nothing to a reader.
        if error.errno and (error.filename is None or str(error.filename).endswith(".tmp")):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp", delete=False) as handle:
        temporary = Path(handle.name)
    try:
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    for left in path.parent.glob(f".{glob.escape(path.stem)}-*.tmp"):
        with suppress(FileNotFoundError):  # another process may sweep as well
            if time.time() - left.stat().st_mtime > STALE:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """As :func:`atomic_path`, for a folder with all that is in it.

    One of that name steps aside before, and is removed after. Killed between the two renames, the name is missing; the
    next run puts the old folder back.
    """
    path = Path(path)
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        os.replace(old, path)
    _sweep(path)
    temporary = Path(mkdtemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp"))
    try:
        yield temporary
        temporary.chmod(0o755)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def json_bytes(content: Any) -> bytes:
    """``content`` as indented JSON. What is not a finite number becomes ``null``: JSON has no NaN."""
    return (json.dumps(_finite(content), indent=1, allow_nan=False) + "\n").encode()


def write_json(path: Path | str, content: Any) -> None:
    """Write ``content`` as :func:`json_bytes`, atomically."""
    write_bytes(path, json_bytes(content))


def netcdf_bytes(dataset: Any, **options: Any) -> bytes:
    """A dataset as the content of a netCDF file.

    It is made in memory: on a full disk the netCDF library ends the whole program.

    Args:
        options: of :meth:`xarray.Dataset.to_netcdf`.
    """
    buffer = io.BytesIO()
    dataset.to_netcdf(buffer, engine="h5netcdf", **options)
    return buffer.getvalue()


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a file, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def why_not_writable(path: Path) -> str:
    """Why no file can be written there, in a few words; "" if one can. The folders that are missing are made.

    Asked before something is computed, and not found out after.
    """
    if path.is_dir():
        return "it is a folder"
    try:
        with atomic_path(path.with_name(f"{path.name}.probe")) as probe:
            probe.write_bytes(b"0")
        path.with_name(f"{path.name}.probe").unlink(missing_ok=True)  # another process may ask as well
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def sha256(path: Path | str) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def verify(path: Path | str, expected: str, instead: str = "restore it from the repository") -> None:
    """Raise :class:`IntegrityError` unless the file's SHA-256 is ``expected``; it says what to do ``instead``."""
    checksum = sha256(path)
    if checksum != expected:
        raise IntegrityError(
            f"{Path(path).name} is corrupt: its SHA-256 is {checksum[:12]}…, its manifest says {expected[:12]}…; "
            f"{instead}."
        )


def content_key(configuration: dict[str, Any]) -> str:
    """A short name for a configuration: equal configurations, and only they, share it."""
    text = json.dumps(configuration, sort_keys=True, default=_told_apart)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _told_apart(value: Any) -> Any:
    """Of an array all numbers count, and NumPy and PyTorch show some of them."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if getattr(value, "ndim", 0) and hasattr(value, "tobytes"):
        return [str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()]
    return repr(value)


@cache
def _commit(package: Path) -> str:
    """Of the code that runs, whatever is committed in the meantime."""
    git = ["git", "-C", str(package)]
    try:
        # Installed inside somebody else's repository, the package is no part of it.
        own = subprocess.run(
            [*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=False
        )
    except FileNotFoundError:  # no git
        return ""
    if own.returncode:
        return ""
    head = [*git, "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=False).stdout.strip()
    # Of what is not committed only the package itself matters: new results lie beside the code that makes them.
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "."], check=False).returncode
    return f"{commit}-dirty" if changed else commit


def refuse_uncommitted() -> None:
    """Ask whether what will be stored can name the code that made it; in a folder of the reader's own it need not.

    Raises:
        PermissionError: if the package has changes that are not committed.
    """
    if not os.environ.get("ASSIM_DATA") and _commit(PACKAGE).endswith("-dirty"):
        raise PermissionError(
            f"assim_lib has changes that are not committed, and what is stored in {data_dir()} names the commit that "
            "made it; commit them, or copy that folder, and name the copy by the environment variable ASSIM_DATA."
        )


@cache
def cpu_model() -> str:
    """What processor this is, as far as it says: on the same one, sums are rounded in the same way."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:  # no Linux
        return platform.processor() or platform.machine()
    said = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", first, re.MULTILINE))
    if "model name" not in said:
        return platform.processor() or platform.machine()
    return f"{said['model name']}, family {said.get('cpu family', '?')}, model {said.get('model', '?')}"


def provenance(device: str = "cpu") -> dict[str, Any]:
    """What a result must say about its origin: git commit, package versions, machine."""
    versions = {}
    for name in VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "commit": _commit(PACKAGE) or "not a checkout",
        "python": platform.python_version(),
        "versions": versions,
        "device": device,
        "processor": platform.machine(),
        "cpu": cpu_model(),
    }
