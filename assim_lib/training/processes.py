"""Several processes, one training: each takes its part of every batch, and all take the same step.

All draw the same random numbers, those of a whole batch, and hold the whole pool. Each unrolls as many filters as any
other; gradients are averaged before they are clipped, and the filters go back to the pool of every process. So all take
and skip the same updates, and the state of a run does not tell how many there were. Gradients, loss and filters travel
by :mod:`torch.distributed`; processes are started by ``torchrun``.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from assim_lib.filter import Carry
from assim_lib.seeds import SharedGenerator
from assim_lib.training.experiment import Experiment, ParameterError
from assim_lib.training.pool import Window


class Processes(NamedTuple):
    """This process, and how many there are; it alone by default.

    Attributes:
        rank: number of this process. The first, 0, validates, writes and shows progress.
        world: number of processes.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def launched(cls) -> "Processes":
        """What ``torchrun`` says of this process, before it has met the others."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    @classmethod
    def met(cls) -> "Processes":
        """This process in its process group; alone if it is in none."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def check(self, experiment: Experiment) -> None:
        """Refuse a batch that cannot be cut into equal parts.

        Raises:
            ParameterError: if so, and where a part of the batch would draw other random numbers than the whole; where
                there are fewer GPUs than processes on this machine.
        """
        batch, world = experiment.batch, self.world
        if batch % world:
            lower = batch - batch % world
            take = " or ".join(str(size) for size in (lower, lower + world) if size)
            raise ParameterError(f"batch = {batch} is not a multiple of {world}, the number of processes; take {take}.")
        if world > 1 and experiment.dropout and experiment.network == "ff_per_operator":
            raise ParameterError(
                f"network = 'ff_per_operator' with dropout = {experiment.dropout} is trained by one process, and these "
                f"are {world}; set dropout to 0."
            )
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if world > 1 and experiment.torch_device.type == "cuda" and here > torch.cuda.device_count():
            raise ParameterError(
                f"device = {experiment.device!r} finds {torch.cuda.device_count()} GPUs for {here} processes on this "
                "machine; start one a GPU, or take 'cpu'."
            )

    def agree(self, update: int) -> None:
        """Ask whether all go on from the same update.

        Raises:
            FileNotFoundError: if not: they do not see the same state of the run.
        """
        updates: list[int | None] = [update] * self.world
        if self.world > 1:
            dist.all_gather_object(updates, update)
        if len({*updates}) > 1:
            raise FileNotFoundError(
                f"the processes find the run after {' and '.join(map(str, updates))} updates; they need one folder."
            )

    def share(self, model: nn.Module) -> None:
        """Give all the weights and buffers of the first: chaos makes another climatology on another machine."""
        if self.world > 1:
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.detach(), 0)

    def drawing(self, generator: torch.Generator) -> torch.Generator:
        """The same generator; where it draws for each of a batch, this process gets what its part of it would."""
        if self.world == 1:
            return generator
        shared = SharedGenerator(generator.device)
        shared.rank, shared.world = self
        shared.set_state(generator.get_state())
        return shared

    def part(self, window: Window) -> Window:
        """The filters of this process, of all of an update."""
        if self.world == 1:
            return window
        return window.with_tensors([tensor.chunk(self.world)[self.rank] for tensor in window.tensors()])

    def average(self, loss: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Replace the gradients of the weights by their average over processes, and return that of the loss."""
        if self.world == 1:
            return loss
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        flat = torch.cat([loss.detach().reshape(1), *(gradient.flatten() for gradient in gradients)])
        dist.all_reduce(flat)
        mean, *parts = (flat / self.world).split([1, *(gradient.numel() for gradient in gradients)])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return mean[0]

    def whole(self, carry: Carry) -> Carry:
        """The filters of all processes, of those of this one, in the order of the batch."""
        return carry if self.world == 1 else carry.each(self._gathered)

    def _gathered(self, part: Tensor) -> Tensor:
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.world)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    def wait(self) -> None:
        """Wait until all are here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def process_group() -> Iterator[None]:
    """Meet the other processes that ``torchrun`` has started, if it has; part in the end."""
    if Processes.launched().world == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group()  # gloo for tensors on processors, NCCL for those on GPUs
    try:
        yield
    finally:
        dist.destroy_process_group()
