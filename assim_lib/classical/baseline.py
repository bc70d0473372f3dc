"""A classical method and its hyperparameters, as stored; reading one needs neither PyTorch nor DAPPER."""

from typing import Literal

from pydantic import Field, model_validator

from assim_lib.stored import Stored

# Keyword arguments of a DAPPER class, under DAPPER's names.
Hyperparameters = dict[str, bool | int | float | str]

# Of the forecast model, not of a DAPPER class: what is added to each forecast of a cycle, the share of a state that is
# taken from it, and the standard deviation of independent random numbers that are added to the members.
CORRECTIONS = ("bias", "damping", "model_noise")

_WITHOUT_ENSEMBLE = ("Climatology", "3D-Var", "4D-Var")


class Baseline(Stored):
    """A classical method and its hyperparameters.

    Attributes:
        method: name, as in the table of scores.
        m: ensemble size; 1 for the methods that carry one state.
        hyperparameters: keyword arguments of the DAPPER class, under DAPPER's names; and :data:`CORRECTIONS` of the
            model.

    Sources: LETKF, Hunt et al. (2007); iEnKS, Bocquet & Sakov (2014); EnKF-N, Bocquet (2011).

    Raises:
        pydantic.ValidationError: for an unknown method, or an ensemble size that the method cannot have.
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
        """Method, size and lag in a few characters, and whether the forecast model is corrected."""
        size = f" m={self.m}" if self.m > 1 else ""
        lag = f" Lag={self.hyperparameters.get('Lag', 1)}" if self.method == "iEnKS" else ""
        return self.method + size + lag + (", corrected model" if self.corrections else "")

    @property
    def scored_method(self) -> str:
        """The method's name in the table of scores: with another forecast model it is another."""
        return f"{self.method} corrected" if self.corrections else self.method

    @property
    def corrections(self) -> dict[str, float]:
        """Those hyperparameters that correct the forecast model."""
        return {name: float(value) for name, value in self.hyperparameters.items() if name in CORRECTIONS}

    def tuned(self, hyperparameters: Hyperparameters) -> "Baseline":
        """The same method and size with other hyperparameters."""
        return self.model_copy(update={"hyperparameters": hyperparameters})
