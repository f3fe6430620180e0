"""Attention transfer."""

import torch.nn.functional as F
from torch import Tensor

from hf_segkd.losses.base import DistillationLoss, LossSetup, pick, same_size
from hf_segkd.models.outputs import SegmentationOutput


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

    def __init__(self, setup: LossSetup, layer: str = "features"):
        super().__init__(setup, layer=layer)

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
        student_map = pick(student, self.layer)
        teacher_map = same_size(pick(teacher, self.layer), student_map)
        return F.mse_loss(attention(student_map), attention(teacher_map))


def attention(x: Tensor) -> Tensor:
    """Attention map of `x` (B, C, h, w): channel mean of squares, unit norm over positions, (B, h·w)."""
    return F.normalize(x.square().mean(dim=1).flatten(1), dim=1)
