"""Published filters, scored once more on their frozen sets: whether the library still yields their stored scores.

On the same model of processor, with the same PyTorch, no block of cycles may differ by more than :data:`SAME`.
Elsewhere sums are rounded otherwise, and chaos makes that visible for a while: there the RMSE may differ by
:data:`ELSEWHERE`, which is less than the interval of any score. What differs by more is *drift*.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from assim_lib.evaluation import BLOCK, Scores
from assim_lib.storage import cpu_model, sha256
from assim_lib.study.results import Result, read_result, results_dir
from assim_lib.training.checkpoints import checkpoint_path, scored_filter
from assim_lib.training.validation import run_filter

SAME, ELSEWHERE = 1e-6, 0.01  # relative to the RMSE


@dataclass(frozen=True)
class Verified:
    """A stored score and what was found in its place.

    Attributes:
        name: of the result.
        cycles: number of cycles that were compared; 0 if nothing could be.
        stored: RMSE over these cycles, as published.
        found: the same, scored anew.
        difference: relative to the stored RMSE: where equality is asked for, the largest of a block, else that of the
            mean.
        allowed: how large it may be.
    """

    name: str
    cycles: int
    stored: float
    found: float
    difference: float
    allowed: float

    @property
    def verdict(self) -> str:
        """What comes of it, in a word or two."""
        if not self.cycles:
            return "not compared"
        # A difference that is no number is drift as well.
        return "same" if self.difference <= self.allowed else "DRIFT"

    @property
    def drifted(self) -> bool:
        """Whether the library yields another score than it did."""
        return self.verdict == "DRIFT"

    def __str__(self) -> str:
        numbers = f"{self.cycles:6d}  {self.stored:.5f}  {self.found:.5f}  {self.difference:8.1e}  {self.allowed:6.0e}"
        return f"{self.name:<80}  {numbers}  {self.verdict}"


HEADER = f"{'result':<80}  cycles   stored    found  difference allowed"


def to_verify(names: Iterable[str] = ()) -> list[tuple[str, Result]]:
    """The results of stored filters, by name; of all filters unless some are named.

    Raises:
        LookupError: if a filter has no result.
    """
    stored = ((path.stem, read_result(path)) for path in sorted(results_dir().glob("*.json")))
    learned = [(name, result) for name, result in stored if result.checkpoint]
    wanted = {f"{name}.safetensors": name for name in names}
    for file, name in wanted.items():
        if all(result.checkpoint != file for _, result in learned):
            raise LookupError(f"name = {name!r} is no stored filter with a score.")
    return [(name, result) for name, result in learned if not wanted or result.checkpoint in wanted]


def verify(results: Iterable[tuple[str, Result]], cycles: int | None = None) -> Iterator[Verified]:
    """Score filters again, one after the other.

    Args:
        results: see :func:`to_verify`.
        cycles: scored cycles to compare, in whole blocks; all by default. A score that was stored without its blocks
            can be compared as a whole only.

    Raises:
        IntegrityError: if weights are not those that were scored, or a frozen set is damaged.
    """
    return (_verified(name, result, cycles) for name, result in results)


def _verified(name: str, result: Result, cycles: int | None) -> Verified:
    whole = cycles is None or cycles >= result.test.cycles
    if not whole and not result.test.blocks:
        return Verified(name, 0, result.test.rmse, np.nan, np.nan, np.nan)
    checkpoint = str(result.checkpoint)
    experiment, model = scored_filter(result.setting, checkpoint)
    twin = experiment.setting.load()
    length = None if cycles is None or whole else twin.burn_in + max(2, cycles // BLOCK) * BLOCK
    found = twin.score(run_filter(experiment, model, twin, length, progress=True)[0])
    same_weights = result.weights in (None, sha256(checkpoint_path(checkpoint)))
    origin, here = result.provenance, (cpu_model(), version("torch"), str(experiment.torch_device))
    same = (origin.cpu, origin.versions.get("torch"), origin.device) == here
    return compared(name, result.test, found, SAME if same else ELSEWHERE, same_weights)


def compared(name: str, stored: Scores, found: Scores, allowed: float, same_weights: bool = True) -> Verified:
    """A stored score beside one of the same cycles, or of its first blocks.

    Args:
        same_weights: whether the stored score is of these weights; if not, no difference is small.
    """
    blocks = np.array(stored.blocks[: len(found.blocks)])
    before = stored.rmse if found.cycles == stored.cycles else float(blocks.mean())
    differences = [found.rmse - before]
    if allowed == SAME and len(blocks):
        differences += list(np.array(found.blocks) - blocks)
    difference = float(np.abs(differences).max()) / before if same_weights else np.inf
    return Verified(name, found.cycles, before, found.rmse, difference, allowed)
