"""One small call of what a reader wrote, where a filter is built: a sentence in place of an error deep inside."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from assim_lib.analyses import ANALYSES
from assim_lib.analyses.base import Corrected
from assim_lib.filter import AmortizedFilter
from assim_lib.mistakes import Mistake, refuse_other, tried
from assim_lib.networks import NETWORKS
from assim_lib.observations import ObservationModel
from assim_lib.training.experiment import Experiment


def refuse_unfit_operator(
    instruments: ObservationModel, climatology: Float[Tensor, "state channel site"], obs_conf: str
) -> None:
    """Raise :class:`Mistake` if an operator does not map the climatology to as many finite numbers."""
    what = f"the operator of obs_conf = {obs_conf!r}"
    observed = tried(what, lambda: instruments.operator(climatology))
    refuse_other(f"{what}, of the climatology,", observed, climatology.shape, climatology.dtype)


@torch.no_grad()
def refuse_unfit_code(model: AmortizedFilter, experiment: Experiment) -> None:
    """Raise :class:`Mistake` if a network or an analysis of a reader's own does not return what it must, in a cycle."""
    own = (ANALYSES[experiment.analysis], NETWORKS[experiment.network])
    if all(kind.__module__.startswith("assim_lib.") for kind in own):
        return
    analysis, network = f"analysis = {experiment.analysis!r}", f"network = {experiment.network!r}"
    called = [analysis]

    def entered(*_: Any) -> None:
        called.append(network)

    def of_network(module: Any, given: Any, came: Any) -> None:
        called.append(analysis)
        shape = (*given[0].shape[:-1], model.analysis.outputs())
        refuse_other(f"what {network} returns", came, shape, given[0].dtype)

    def of_analysis(module: Any, given: Any, came: Any) -> None:
        if not isinstance(came, tuple) or len(came) != len(Corrected._fields):
            raise Mistake(f"{analysis} returns a {type(came).__name__}; it must return a Corrected.")
        for name, like in (("base", given[0].base), ("memory", given[0].memory)):
            refuse_other(f"{name} of what {analysis} returns", getattr(came, name, came[0]), like.shape, like.dtype)

    trunk = model.analysis.trunk
    hooks = [
        trunk.register_forward_pre_hook(entered),
        trunk.register_forward_hook(of_network),
        model.analysis.register_forward_hook(of_analysis),
    ]
    try:
        carry = model.cold_start(2, generator=torch.Generator().manual_seed(0))
        observed = torch.zeros_like(carry.base[:, 0])
        tried(lambda: called[-1], lambda: model.cycle(carry, observed, torch.zeros(2, dtype=torch.long)))
    finally:
        for hook in hooks:
            hook.remove()
