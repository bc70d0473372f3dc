"""What is stored as JSON: typed, validated when it is read, and read in one way.

Nothing here needs PyTorch or DAPPER, so that stored scores are read without them.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, WrapSerializer

from assim_lib.evaluation import Scores
from assim_lib.storage import IntegrityError, write_json


def _with_nan(stored: Any) -> Any:
    """JSON has no NaN: a missing number was written as null."""
    if isinstance(stored, dict):
        return {name: _with_nan(value) for name, value in stored.items()}
    if isinstance(stored, list):
        return [_with_nan(value) for value in stored]
    return math.nan if stored is None else stored


def _measured(scores: Scores, as_dict: Callable[[Scores], dict[str, Any]]) -> dict[str, Any]:
    """Without the blocks of scores that were stored before there were any."""
    return {name: value for name, value in as_dict(scores).items() if name != "blocks" or value}


Number = Annotated[float, BeforeValidator(_with_nan)]
StoredScores = Annotated[Scores, BeforeValidator(_with_nan), WrapSerializer(_measured)]

R = TypeVar("R", bound=BaseModel)


class Stored(BaseModel):
    """What a JSON file holds; never changed once it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def read(cls: type[R], path: Path) -> R:
        """What a file holds.

        Raises:
            IntegrityError: if the file holds anything else; the sentence names the file and the field.
            FileNotFoundError: if there is no such file.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "content"
            raise IntegrityError(
                f"{path.name} is no {cls.__name__}: {field}: {first['msg']}; restore it from the repository, or remove "
                "it."
            ) from None

    def write(self, path: Path, exclude_unset: bool = False) -> Path:
        """Store it, perhaps without what was never set, and return the path."""
        write_json(path, self.model_dump(exclude_unset=exclude_unset))
        return path
