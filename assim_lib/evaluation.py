"""Scores, with their uncertainty.

The **RMSE** of a filter is DAPPER's: at each cycle the root-mean-square error of the analysis mean over the sites, then
the mean of these over the scored cycles. **Spread** is the root of the mean ensemble variance; in a reliable
ensemble it equals the RMSE. **CRPS** and the **rank histogram** come from the ``scores`` library.

Successive cycles are correlated. Confidence intervals are therefore those of the means over blocks of cycles, and
wider where neighbouring blocks are correlated as well. Two methods that saw the same observations are compared by the
**paired** difference of their errors, cycle by cycle: most of what is hard is hard for both.

A method has **lost the truth** where over :data:`LOST_AFTER` cycles it is worse than the climatological mean. The same
criterion holds for classical and learned methods.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

BLOCK = 100
SETTLING = 60  # cycles after a cold start in which a filter finds the truth, and is not scored on short runs
# By a little more than the climatology of one run differs from that of another.
LOST_AT, LOST_AFTER = 1.02, 100


@dataclass(frozen=True)
class Scores:
    """Time means over the scored cycles; ``rmse_lo`` and ``rmse_hi`` bound the 95 % confidence interval.

    ``blocks`` are the mean RMSE of each :data:`BLOCK` cycles: what a paired comparison with another method needs.
    """

    rmse: float
    rmse_lo: float
    rmse_hi: float
    spread: float
    crps: float
    cycles: int
    blocks: tuple[float, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """One number a name, for a row of a table."""
        return {name: value for name, value in asdict(self).items() if name != "blocks"}

    def __str__(self) -> str:
        return f"RMSE {self.rmse:.3f} [{self.rmse_lo:.3f}, {self.rmse_hi:.3f}], spread {self.spread:.3f}"

    def overlaps(self, other: Any) -> bool:
        """Whether its interval and that of another score, or of a row of the table, have values in common."""
        return bool(self.rmse_lo <= other.rmse_hi and other.rmse_lo <= self.rmse_hi)

    def minus(self, other: "Scores") -> tuple[float, float, float]:
        """The paired difference of the RMSE to another method's on the same observations, with its 95 % interval.

        This method is *ahead* if the whole interval is below zero.

        Raises:
            ValueError: if the blocks of one of them are not stored, or are not those of the same cycles.
        """
        if not self.blocks or len(self.blocks) != len(other.blocks):
            raise ValueError(
                f"a paired difference needs the same blocks of cycles of both; here are {len(self.blocks)} and "
                f"{len(other.blocks)}."
            )
        return paired_difference(np.array(self.blocks), np.array(other.blocks), block=1)


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
    from scores.probability import crps_for_ensemble  # late: a table of scores is read without that library

    forecast, observed = _labelled(ensemble, truth)
    keep = [str(dimension) for dimension in observed.dims[:-2]]
    return crps_for_ensemble(
        forecast, observed, "member", method="ecdf", preserve_dims=keep or None, reduce_dims=None if keep else "all"
    ).to_numpy()


def ranks(
    ensemble: Float[np.ndarray, "*batch member channel site"], truth: Float[np.ndarray, "*batch channel site"]
) -> Float[np.ndarray, "rank"]:
    """Relative frequency of the truth's rank among the members: flat for a reliable ensemble."""
    from scores.probability import rank_histogram

    return rank_histogram(*_labelled(ensemble, truth), "member").to_numpy()


def block_means(series: Float[np.ndarray, "cycle"], block: int = BLOCK) -> Float[np.ndarray, "block"]:
    """Means over consecutive blocks of cycles; what is left at the end belongs to none."""
    blocks = len(series) // block
    return series[: blocks * block].reshape(blocks, block).mean(1)


def interval(series: Float[np.ndarray, "cycle"], block: int = BLOCK) -> tuple[float, float]:
    """95 % confidence interval of the mean of a correlated series: Student's, of the means over its blocks.

    Where the blocks themselves are correlated, their number counts for less: by (1 + r) / (1 - r), with the correlation
    r of neighbours, corrected for the bias that an estimate from so few has.

    Raises:
        ValueError: if the series has fewer than two whole blocks.
    """
    blocks = len(series) // block
    if blocks < 2:
        raise ValueError(
            f"{len(series)} cycles are too few for a confidence interval: at least {2 * block} are needed."
        )
    from scipy.stats import t  # late: a table of scores is read without that library

    means = block_means(np.asarray(series, dtype=np.float64), block)
    deviations = means - means.mean()
    variance = np.square(deviations).sum() / (blocks - 1)
    if not variance > 0:
        return float(series.mean()), float(series.mean())
    correlation = (deviations[1:] * deviations[:-1]).sum() / (variance * (blocks - 1))
    correlation = float(np.clip(correlation + (1 + 3 * correlation) / blocks, 0.0, 0.95))
    inflation = (1 + correlation) / (1 - correlation)
    half = t.ppf(0.975, blocks - 1) * np.sqrt(variance / blocks * inflation)
    return float(series.mean() - half), float(series.mean() + half)


def paired_difference(
    ours: Float[np.ndarray, "cycle"], theirs: Float[np.ndarray, "cycle"], block: int = BLOCK
) -> tuple[float, float, float]:
    """Mean of ``ours - theirs`` and its 95 % confidence interval, for errors on the same observations.

    ``ours`` is *ahead* if the whole interval is below zero.
    """
    difference = ours - theirs
    low, high = interval(difference, block)
    return float(difference.mean()), low, high


def lost_truth(
    rmse_series: Float[np.ndarray, "*batch cycle"],
    climatology: Float[np.ndarray, "cycle"] | float,
    window: int = LOST_AFTER,
) -> Bool[np.ndarray, "*batch"]:
    """Whether over some ``window`` consecutive cycles the mean RMSE exceeds that of the climatological mean.

    Args:
        rmse_series: of the analysis, without the burn-in; a value that is not finite loses the truth as well.
        climatology: RMSE of the climatological mean, by cycle or once for all.
    """
    window = min(window, rmse_series.shape[-1])
    scale = np.broadcast_to(climatology, rmse_series.shape[-1:])

    def means(series: np.ndarray) -> np.ndarray:
        return np.lib.stride_tricks.sliding_window_view(series, window, axis=-1).mean(-1)

    return np.asarray(is_lost(means(rmse_series), means(scale)).any(-1))


def is_lost(mean_rmse: Float[np.ndarray, "*any"], climatology: np.ndarray | float) -> Bool[np.ndarray, "*any"]:
    """Whether a mean over :data:`LOST_AFTER` cycles is that of a filter that has lost the truth.

    Args:
        mean_rmse: one that is not finite is.
        climatology: RMSE of the climatological mean over the same cycles.
    """
    return np.asarray(~(mean_rmse <= LOST_AT * climatology))  # NaN is not below anything


def error_by_age(
    mean: Float[np.ndarray, "cycle channel site"],
    truth: Float[np.ndarray, "cycle channel site"],
    seen: Bool[np.ndarray, "cycle channel site"],
    burn_in: int = 0,
) -> dict[str, np.ndarray]:
    """RMSE and bias of an analysis by the number of cycles since an entry was last observed.

    A filter that is only right where it will be looked at next has an error, or a bias, that depends on it more than
    the growth of errors explains.

    Args:
        mean: of the analysis ensemble.
        seen: which entries were received.
        burn_in: number of first cycles that are not counted.

    Returns:
        ``age`` (0 where an entry is seen in that very cycle), ``rmse``, ``bias`` and ``share`` of all entries, an entry
        an age. What was never seen so far counts for none.
    """
    cycles = np.arange(len(seen))[:, None, None]
    last = np.maximum.accumulate(np.where(seen, cycles, -1), axis=0)
    age = np.where(last < 0, -1, cycles - last)[burn_in:]
    error = (mean - truth)[burn_in:].astype(np.float64)
    ages = np.unique(age[age >= 0])
    groups = [error[age == value] for value in ages]
    return {
        "age": ages,
        "rmse": np.array([np.sqrt(np.mean(group**2)) for group in groups]),
        "bias": np.array([group.mean() for group in groups]),
        "share": np.array([group.size for group in groups]) / error.size,
    }


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
        blocks=tuple(block_means(rmse_series).tolist()),
    )


def evaluate(
    ensemble: Float[np.ndarray, "cycle member channel site"],
    truth: Float[np.ndarray, "cycle channel site"],
    burn_in: int,
) -> Scores:
    """Score the analysis ensembles of a whole test set, without its first ``burn_in`` cycles."""
    ensemble, truth = ensemble[burn_in:], truth[burn_in:]
    return summarize(rmse(ensemble, truth), spread(ensemble), crps(ensemble, truth))
