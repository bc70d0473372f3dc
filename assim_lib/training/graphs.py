"""Updates on a GPU: thousands of small operations, launched as one.

A window is ten cycles of some hundred operations on small tensors. A GPU is done with each before the next is launched,
and waits; a graph of all of them is launched at once (measured on an H100: a quarter of the time).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from assim_lib.filter import Carry
from assim_lib.training.experiment import Experiment, ParameterError
from assim_lib.training.pool import Window

WARM_UPS = 3

Unroll = Callable[[Window], tuple[Tensor, Carry]]


def check_ways(experiment: Experiment, graphed: bool, recompute: bool) -> None:
    """Refuse a graph where there can be none, and to compute again what cannot be.

    Raises:
        ParameterError: for a graph without a GPU, or of a network that sorts a batch by its instruments; for both ways
            at once; to compute again a gradient that a filter sees, whose own derivative needs what was kept of it.
    """
    if graphed and recompute:
        raise ParameterError("graphed = True and recompute = True exclude each other: a graph keeps what it computes.")
    if recompute and experiment.sees_gradient:
        raise ParameterError("recompute = True cannot be with sees_gradient = True; leave one of them out.")
    if graphed and experiment.torch_device.type != "cuda":
        raise ParameterError("graphed = True is for a GPU, and this run has none; leave it out.")
    if graphed and experiment.network == "ff_per_operator":
        raise ParameterError("graphed = True cannot be with network = 'ff_per_operator'; leave it out.")


class GraphedUnroll:
    """The loss of a window, where its filters end, and the gradient of the loss, as a CUDA graph.

    Args:
        unroll: from a window to its loss and the carry at its end. Nothing in it may wait for the processor.
        weights: whose gradients are wanted. Each graph writes them to memory of its own: after a call they are there.
        window: one of the shape that all will have.
        generator: on the GPU, what ``unroll`` draws from.
    """

    def __init__(self, unroll: Unroll, weights: Sequence[Tensor], window: Window, generator: torch.Generator):
        self.inputs = [part.clone() for part in window.tensors()]
        window = window.with_tensors(self.inputs)
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                unroll(window)[0].backward()
        torch.cuda.current_stream().wait_stream(beside)
        for weight in weights:
            weight.grad = None  # so that the graph writes gradients, and does not add to them
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(generator)
        with torch.cuda.graph(self.graph):
            loss, carry = unroll(window)
            loss.backward()
        self.loss, self.carry = loss.detach(), carry
        self.gradients = [(weight, weight.grad) for weight in weights]

    def __call__(self, window: Window) -> tuple[Tensor, Carry]:
        """The same of another window; both are overwritten by the next call."""
        for own, given in zip(self.inputs, window.tensors(), strict=True):
            own.copy_(given)
        self.graph.replay()
        for weight, gradient in self.gradients:  # another pool's graph may have left its own here
            weight.grad = gradient
        return self.loss, self.carry
