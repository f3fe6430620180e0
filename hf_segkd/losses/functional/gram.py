"""Inner products of a map's channels."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def gram(x: Tensor) -> Tensor:
    """`x xᵀ` (B, C, C) of `x` (B, C, N), with one matrix product in backward where `x @ x.mT` has two.

    It can be differentiated once.
    """
    return _Gram.apply(x)


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x @ x.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (grad + grad.transpose(1, 2)) @ x
