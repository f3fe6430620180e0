"""Attention transfer."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_segkd.losses.base import DistillationLoss, LossSetup, get_layer, resize_like
from hf_segkd.models.outputs import SegmentationOutput

CHANNELS = 64  # squared at once


class ATLoss(DistillationLoss):
    """Attention transfer: the student learns where the teacher's activations are strong.

    The attention map of a feature is the channel mean of its squares, as a unit vector over the h·w positions.
    The loss is the mean over images and positions of the squared difference of the two maps.

    Args:
        setup (`LossSetup`): Shapes of both models' outputs; channel counts may differ.
        layer (`str`, *optional*, defaults to `"features"`): Field to compare.

    Returns:
        `torch.Tensor`: Scalar, at most 2/(h·w) because both maps are non-negative unit vectors: hence weights of 1e4.

    Differs from the original: a teacher map of another size is resized to the student's.

    Reference: Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017,
    https://huggingface.co/papers/1612.03928
    """

    paper = "https://huggingface.co/papers/1612.03928"
    citation = """@inproceedings{zagoruyko2017paying,
  title={Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via Attention
         Transfer},
  author={Zagoruyko, Sergey and Komodakis, Nikos},
  booktitle={ICLR},
  year={2017}
}"""
    time_growth = "BCN"
    memory_growth = "BN"
    fused = True

    def __init__(self, setup: LossSetup, layer: str = "features"):
        super().__init__(setup, layer=layer)

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
        student_map = get_layer(student, self.layer)
        teacher_map = resize_like(get_layer(teacher, self.layer), student_map)
        return F.mse_loss(attention(student_map), attention(teacher_map))


def attention(x: Tensor) -> Tensor:
    """Attention map of `x` (B, C, h, w): channel mean of squares, unit norm over positions, (B, h·w)."""
    return F.normalize(mean_square(x).flatten(1), dim=1)


def mean_square(x: Tensor) -> Tensor:
    """Mean over the channels of the squares of `x` (B, C, h, w), (B, h, w); the squares are never held all at once."""
    return _MeanSquare.apply(x)


class _MeanSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        total = torch.zeros_like(x[:, 0])
        for channels in x.split(CHANNELS, dim=1):
            total += channels.square().sum(dim=1)
        return total / x.shape[1]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x * (2 / x.shape[1] * grad)[:, None]
