"""Tensors and a header in a file with a checksum of both: what an unfinished run, or a filter on its way, goes on from.

safetensors hold no code, and do not notice a bit that flips.
"""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from assim_lib.storage import IntegrityError, atomic_path

CHECKSUM = "sha256"  # its place in the header


def save_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Write tensors by name, and texts by name, atomically."""
    # Two names for one tensor are two tensors in a file.
    tensors = {name: part.detach().cpu().contiguous().clone() for name, part in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {**header, CHECKSUM: _checksum(tensors, header)})


def load_tensors(path: Path, what: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a file.

    Args:
        what: the file is, as its sentence calls it. One without a checksum is an older one, and believed.

    Raises:
        IntegrityError: if it is none, or damaged.
        FileNotFoundError: if there is none.
    """
    damaged = IntegrityError(f"{path} is no {what}, or damaged; remove it to begin again, or restore a copy.")
    try:
        with safe_open(path, "pt") as file:
            header = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, UnicodeDecodeError):
        raise damaged from None
    checksum = header.pop(CHECKSUM, None)
    if checksum is not None and checksum != _checksum(tensors, header):
        raise damaged
    return header, tensors


def _checksum(tensors: dict[str, Tensor], header: dict[str, str]) -> str:
    digest = hashlib.sha256(repr(sorted(header.items())).encode())
    for name, part in sorted(tensors.items()):
        digest.update(f"{name} {tuple(part.shape)} {part.dtype}".encode())
        digest.update(part.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
