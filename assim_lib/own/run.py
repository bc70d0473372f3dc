"""What has been checked and is ready: one filter along one record, to its analysis, scores and end."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import xarray as xr
from tqdm import tqdm

from assim_lib.evaluation import SETTLING
from assim_lib.filter import AmortizedFilter
from assim_lib.own.cycling import members_of, run_along
from assim_lib.own.innovations import InnovationScores, InnovationSums
from assim_lib.own.output import layout, read_back, sink_of, written
from assim_lib.own.record import OwnRecord
from assim_lib.own.remarks import Outliers, remark_on_innovations
from assim_lib.own.sources import PART
from assim_lib.own.state import FilterState, save_state
from assim_lib.tracking import DRAWS


class Assimilated(NamedTuple):
    """What comes of a record.

    Attributes:
        analysis: mean, spread and innovations; those of a file are read when they are looked at.
        scores: of the innovations, without the first cycles after a cold start.
        state: where the filter stands at the end.
    """

    analysis: xr.Dataset
    scores: InnovationScores
    state: FilterState


@dataclass(frozen=True)
class AssimilationRun:
    """An assimilation that can begin; a call makes it.

    Attributes:
        model: the filter, perhaps compiled.
        record: what it is run along.
        start: where it stands before; with the filter's name, weights and options, which the end is kept under too.
        weighs: whether the record's errors are used; else the filter's own are.
        dropout: whether dropout is on.
        members: whether members are kept.
        drop_outliers: whether numbers far off their forecast are not used.
        output: file of the analysis; None: it stays in memory.
        state: file where the end is kept.
        chunk: number of cycles that are in memory at a time.
    """

    model: AmortizedFilter
    record: OwnRecord
    start: FilterState
    weighs: bool
    dropout: bool
    members: bool
    drop_outliers: bool
    output: Path | None
    state: Path | None
    chunk: int = PART

    def __call__(self, progress: bool = False) -> Assimilated:
        """Run the filter along the record, and keep what comes of it."""
        planned = self._layout()
        at = self.start
        sums, outliers = InnovationSums(), Outliers()
        with (
            sink_of(planned, self.output) as sink,
            tqdm(total=self.record.cycles, desc="assimilate", unit="cycle", disable=not progress) as bar,
        ):
            for first, values, error in self.record.parts(self.chunk):
                counted = slice(max(0, SETTLING + self.model.warmup - at.age), None)
                cycled = run_along(
                    self.model,
                    values,
                    at,
                    error if self.weighs else None,
                    self.dropout,
                    self.members,
                    self.drop_outliers,
                    bar.update,
                )
                at = cycled.state
                sums.add(cycled.innovation[counted], cycled.expected[counted])
                outliers.add(first, cycled.outlier)
                sink.write(first, written(cycled))
            sink.finish(sums.scores)
        remark_on_innovations(outliers, sums.scores, self.model, self.drop_outliers)
        whose = {name: getattr(self.start, name) for name in ("filter", "weights", "options")}
        end = replace(at, clock=self.record.clock, **whose)
        if self.state is not None:  # last: a run that is stopped before it begins again where it began
            save_state(end, self.state)
        return Assimilated(planned if self.output is None else read_back(self.output), sums.scores, end)

    def _layout(self) -> xr.Dataset:
        """The analysis before there is one; in memory, where it is filled."""
        about = {
            "filter": self.start.filter,
            "filter_sha256": self.start.weights,
            "ensemble": _ensemble(self.model),
            "observation_error": _assumed(self.model, self.record),
        }
        shape = tuple(self.model.climatology.shape[-2:])
        members = members_of(self.start.carry) if self.members else 0
        planned = layout(self.record, self.start.number, shape, members, about)
        return planned.copy(deep=True) if self.output is None else planned


def _assumed(model: AmortizedFilter, record: OwnRecord) -> str:
    """What the errors of the observations are taken for."""
    if record.part(0, 1).error is not None:
        return "that of the record"
    sizes = sorted({f"{float(size):.4g}" for size in (model.error.min(), model.error.max())}, key=float)
    return f"{' … '.join(sizes)}, the filter's own; the record has none"


def _ensemble(model: AmortizedFilter) -> str:
    if model.analysis.maximum_members == 1:
        return f"{DRAWS} members drawn from a covariance"
    return f"{model.analysis.members} members"
