"""What processes tell each other: counts, and features with their gradients."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes; 1 where torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process; 0 where torch.distributed is not in use."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def mean_over_ranks(count: Tensor) -> Tensor:
    """Average a count over all processes, at least one; losses are averaged over processes later."""
    count = count.float()
    if world_size() > 1:
        dist.all_reduce(count)
        count = count / world_size()
    return count.clamp(min=1.0)


def true_on_any_rank(flags: Tensor) -> Tensor:
    """Combine the boolean tensors of all processes, of one shape, by "or"."""
    if world_size() == 1:
        return flags
    counts = flags.to(torch.uint8)
    dist.all_reduce(counts, dist.ReduceOp.MAX)
    return counts.bool()


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Average gradients over all processes, as DDP does for the parameters of the module that it wraps."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size()


def of_first_rank(values: Tensor) -> Tensor:
    """Replace a tensor, of one shape on all processes, by that of the first process."""
    if world_size() > 1:
        dist.broadcast(values, src=0)
    return values


def leave_together() -> None:
    """End the process group, as the last act of a program that many processes run.

    A thread of gloo frees the tensors of the last exchange once all is done, and for that needs Python; in a process
    that is leaving by then it aborts ("terminate called without an active exception"). So all wait for each other.
    """
    if world_size() > 1:
        dist.barrier()
        dist.destroy_process_group()


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(_: object, features: Tensor) -> Tensor:
        parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, features.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(_: object, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather_with_gradient(features: Tensor) -> Tensor:
    """Concatenate the features of all processes, in the order of their ranks.

    The gradient of a feature is the sum over all processes, so that after the average of data-parallel training the
    step equals that of one process with the whole batch.

    Args:
        features: ``(n, ...)``, of the same shape on every process.

    Returns:
        ``(world_size * n, ...)``.
    """
    return features if world_size() == 1 else _GatherWithGradient.apply(features)
