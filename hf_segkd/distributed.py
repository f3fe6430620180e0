"""What the losses need to know about other processes; in a single process nothing is sent and nothing changes."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def world_size() -> int:
    """Number of processes that train together."""
    return torch.distributed.get_world_size() if _initialized() else 1


def rank() -> int:
    """Index of this process, from 0."""
    return torch.distributed.get_rank() if _initialized() else 0


def gather(x: Tensor) -> Tensor:
    """Concatenate `x` of all processes along dimension 0, in the order of their ranks and without gradient.

    Every process must call it with the same shape, because the receiving tensors are made from the local one.
    """
    x = x.detach()
    if world_size() == 1:
        return x
    # Not accelerate's gather: it returns the local tensor when the process group was started by someone else.
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
    torch.distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def average(tensors: list[Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in one message. All must have one dtype and device."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([x.flatten() for x in tensors])
    torch.distributed.all_reduce(flat)
    for x, mean in zip(tensors, (flat / world_size()).split([x.numel() for x in tensors]), strict=True):
        x.copy_(mean.view_as(x))


def gather_with_gradient(x: Tensor) -> Tensor:
    """Concatenate `x` of all processes as [`gather`] does, with a gradient to the part of every process.

    Each process's part gets the sum of all processes' gradients. Where every process computes the loss of the whole
    gathered batch (or the mean over processes is that loss), the average that DistributedDataParallel takes over
    processes is then the gradient of one process with the whole batch.
    """
    return x if world_size() == 1 else _Gather.apply(x)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return gather(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total.chunk(world_size())[rank()]


def _initialized() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
