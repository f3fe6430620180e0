"""KL between softmax distributions, keeping one tensor for backward."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def softmax_kl(student: Tensor, teacher: Tensor, dim: int, temperature: float = 1.0) -> Tensor:
    """Sum of `KL(softmax(teacher / temperature) ‖ softmax(student / temperature))` with the softmax along `dim`.

    Args:
        student (`torch.Tensor`): Logits, any shape; the only input with a gradient.
        teacher (`torch.Tensor`): Logits of the same shape, taken as constants.
        dim (`int`): Dimension along which each distribution lies.
        temperature (`float`, *optional*, defaults to `1.0`): Softmax temperature, > 0.

    Returns:
        `torch.Tensor`: Scalar, in nats, without the factor temperature². Kept for backward: one tensor of the
        student's size. It can be differentiated once.

    Raises:
        ValueError: If the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must have the same shape, got {tuple(student.shape)} and {tuple(teacher.shape)}. "
            "Resize or project one of them first."
        )
    return _SoftmaxKL.apply(student, teacher.detach(), dim, temperature)


class _SoftmaxKL(torch.autograd.Function):
    """The gradient is `(softmax(student) − softmax(teacher)) / temperature`: both are at hand in the forward pass."""

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, dim: int, temperature: float) -> Tensor:
        log_s = (student / temperature).log_softmax(dim)
        log_t = (teacher / temperature).log_softmax(dim)
        p_t = log_t.exp()
        # In place from here on: three tensors of this size are enough.
        total = log_t.sub_(log_s).mul_(p_t).sum()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(log_s.exp_().sub_(p_t).div_(temperature))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None, None, None
