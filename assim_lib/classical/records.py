"""What is stored as JSON: typed, validated when it is read, and read in one way.

Nothing here needs PyTorch or DAPPER, so that stored scores are read without them.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from assim_lib.evaluation import Scores
from assim_lib.storage import IntegrityError


def _with_nan(stored: Any) -> Any:
    """JSON has no NaN: a missing number was written as null."""
    if isinstance(stored, dict):
        return {name: math.nan if value is None else value for name, value in stored.items()}
    return math.nan if stored is None else stored


Number = Annotated[float, BeforeValidator(_with_nan)]
StoredScores = Annotated[Scores, BeforeValidator(_with_nan)]
# Keyword arguments of a DAPPER class, under DAPPER's names.
Hyperparameters = dict[str, bool | int | float | str]


R = TypeVar("R", bound=BaseModel)


class Record(BaseModel):
    """What a JSON file holds; never changed once it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def read(cls: type[R], path: Path) -> R:
        """The record in a file.

        Raises
        ------
        IntegrityError : if the file holds anything else; the sentence names the file and the field.
        FileNotFoundError : if there is no such file.
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


_WITHOUT_ENSEMBLE = ("Climatology", "3D-Var", "4D-Var")


class Baseline(Record):
    """A classical method and its hyperparameters.

    Attributes
    ----------
    method : name, as in the table of scores.
    m : ensemble size; 1 for the methods that carry one state.
    hyperparameters : keyword arguments of the DAPPER class, under DAPPER's names.

    Sources: LETKF, Hunt et al. (2007); iEnKS, Bocquet & Sakov (2014); EnKF-N, Bocquet (2011).

    Raises
    ------
    pydantic.ValidationError : for an unknown method, or an ensemble size that the method cannot have.
    """

    method: Literal["Climatology", "3D-Var", "4D-Var", "EnKF", "EnKF-N", "LETKF", "iEnKS"]
    m: int = Field(default=1, ge=1)
    hyperparameters: Hyperparameters = {}

    @model_validator(mode="after")
    def _ensemble_size_fits(self) -> "Baseline":
        single = self.method in _WITHOUT_ENSEMBLE
        if (self.m == 1) != single:
            raise ValueError(f"m = {self.m}: {self.method} {'carries one state' if single else 'needs at least two'}")
        return self

    @property
    def label(self) -> str:
        """Method, size and lag in a few characters."""
        size = f" N={self.m}" if self.m > 1 else ""
        lag = f" Lag={self.hyperparameters.get('Lag', 1)}" if self.method == "iEnKS" else ""
        return self.method + size + lag

    def tuned(self, hyperparameters: Hyperparameters) -> "Baseline":
        """The same method and size with other hyperparameters."""
        return self.model_copy(update={"hyperparameters": hyperparameters})
