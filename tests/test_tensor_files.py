"""States of runs: what comes back, and that one bit that flips is noticed."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_runs import advance, assert_same, ring_trainer

from assim_lib.storage import IntegrityError
from assim_lib.tensor_files import load_tensors, save_tensors

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3), "c": torch.ones(2, dtype=torch.bool)}


def test_tensors_and_texts_come_back(tmp_path):
    path = tmp_path / "state.safetensors"
    save_tensors(path, {**TENSORS, "d": TENSORS["a"]}, {"note": "σ"})
    header, tensors = load_tensors(path, "state")
    assert header == {"note": "σ"}
    assert_same(tensors, {**TENSORS, "d": TENSORS["a"]})
    save_file(TENSORS, path, {"note": "older"})
    assert load_tensors(path, "state")[0] == {"note": "older"}


def test_any_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "state.safetensors"
    save_tensors(path, TENSORS, {"note": "this is a text"})
    content, random = path.read_bytes(), np.random.RandomState(0)
    for _ in range(200):
        changed = bytearray(content)
        changed[random.randint(len(changed))] ^= 1 << random.randint(8)
        path.write_bytes(changed)
        with suppress(IntegrityError):  # or it was a bit of the checksum's own name, or of blanks
            header, tensors = load_tensors(path, "state of a run")
            assert header["note"] == "this is a text"
            assert_same(tensors, TENSORS)


def test_a_run_whose_state_is_damaged_is_not_gone_on_with(tmp_path):
    path, trainer = tmp_path / "state.safetensors", ring_trainer()
    advance(trainer, 1)
    trainer.save(path)
    changed = bytearray(path.read_bytes())
    changed[-5] ^= 1
    path.write_bytes(changed)
    with pytest.raises(IntegrityError, match="is no state of a run, or damaged; remove it to begin again"):
        ring_trainer().load(path)
