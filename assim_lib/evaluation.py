"""Scores, with their uncertainty.

The **RMSE** of a filter is DAPPER's: at each cycle the root-mean-square error of the analysis mean over the sites, then
the mean of these over the scored cycles. **Spread** is the root of the mean ensemble variance; in a reliable
ensemble it equals the RMSE. **CRPS** and the **rank histogram** come from the ``scores`` library.

Successive cycles are correlated. Confidence intervals therefore resample blocks of cycles, long against
the memory of the system, not single cycles.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy.stats import bootstrap
from scores.probability import crps_for_ensemble, rank_histogram

BLOCK = 100


@dataclass(frozen=True)
class Scores:
    """Time means over the scored cycles; ``rmse_lo`` and ``rmse_hi`` bound the 95 % confidence interval."""

    rmse: float
    rmse_lo: float
    rmse_hi: float
    spread: float
    crps: float
    cycles: int

    def as_dict(self) -> dict[str, Any]:
        """For a record or a row of the table."""
        return asdict(self)

    def __str__(self) -> str:
        return f"RMSE {self.rmse:.3f} [{self.rmse_lo:.3f}, {self.rmse_hi:.3f}], spread {self.spread:.3f}"

    def overlaps(self, other: Any) -> bool:
        """Whether its interval and that of another score, or of a row of the table, have values in common."""
        return bool(self.rmse_lo <= other.rmse_hi and other.rmse_lo <= self.rmse_hi)


def rmse(
    ensemble: Float[np.ndarray, "*batch member channel site"], truth: Float[np.ndarray, "*batch channel site"]
) -> Float[np.ndarray, "*batch"]:
    """Root-mean-square error of the ensemble mean over channels and sites."""
    return np.asarray(np.sqrt(np.square(ensemble.mean(-3) - truth).mean((-2, -1))))


def spread(ensemble: Float[np.ndarray, "*batch member channel site"]) -> Float[np.ndarray, "*batch"]:
    """Root of the mean ensemble variance over channels and sites; zero for a single member."""
    if ensemble.shape[-3] == 1:
        return np.zeros(ensemble.shape[:-3])
    return np.asarray(np.sqrt(ensemble.var(-3, ddof=1).mean((-2, -1))))


def _labelled(ensemble: np.ndarray, truth: np.ndarray) -> tuple[xr.DataArray, xr.DataArray]:
    batch = [f"batch{i}" for i in range(truth.ndim - 2)]
    return (
        xr.DataArray(ensemble, dims=[*batch, "member", "channel", "site"]),
        xr.DataArray(truth, dims=[*batch, "channel", "site"]),
    )


def crps(
    ensemble: Float[np.ndarray, "*batch member channel site"], truth: Float[np.ndarray, "*batch channel site"]
) -> Float[np.ndarray, "*batch"]:
    """Continuous ranked probability score of the ensemble, averaged over channels and sites.

    For one member it is the mean absolute error.
    """
    forecast, observed = _labelled(ensemble, truth)
    keep = [str(dimension) for dimension in observed.dims[:-2]]
    return crps_for_ensemble(
        forecast, observed, "member", method="ecdf", preserve_dims=keep or None, reduce_dims=None if keep else "all"
    ).to_numpy()


def ranks(
    ensemble: Float[np.ndarray, "*batch member channel site"], truth: Float[np.ndarray, "*batch channel site"]
) -> Float[np.ndarray, "rank"]:
    """Relative frequency of the truth's rank among the members: flat for a reliable ensemble."""
    return rank_histogram(*_labelled(ensemble, truth), "member").to_numpy()


def interval(series: Float[np.ndarray, "cycle"], block: int = BLOCK, seed: int = 0) -> tuple[float, float]:
    """95 % confidence interval of the mean of a correlated series, by bootstrap over blocks.

    Raises
    ------
    ValueError : if the series has fewer than two whole blocks.
    """
    blocks = len(series) // block
    if blocks < 2:
        raise ValueError(
            f"{len(series)} cycles are too few for a confidence interval: at least {2 * block} are needed."
        )
    means = series[: blocks * block].reshape(blocks, block).mean(1)
    result = bootstrap((means,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(seed))
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def summarize(
    rmse_series: Float[np.ndarray, "cycle"],
    spread_series: Float[np.ndarray, "cycle"],
    crps_series: Float[np.ndarray, "cycle"],
) -> Scores:
    """The scores of a run from its series over the scored cycles."""
    low, high = interval(rmse_series)
    return Scores(
        rmse=float(rmse_series.mean()),
        rmse_lo=low,
        rmse_hi=high,
        spread=float(spread_series.mean()),
        crps=float(crps_series.mean()),
        cycles=len(rmse_series),
    )


def evaluate(
    ensemble: Float[np.ndarray, "cycle member channel site"],
    truth: Float[np.ndarray, "cycle channel site"],
    burn_in: int,
) -> Scores:
    """Score the analysis ensembles of a whole test set, without its first ``burn_in`` cycles."""
    ensemble, truth = ensemble[burn_in:], truth[burn_in:]
    return summarize(rmse(ensemble, truth), spread(ensemble), crps(ensemble, truth))
