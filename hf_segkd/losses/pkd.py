"""Distillation of normalized features: PKD and its form with statistics of each image."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from hf_segkd.losses.base import DistillationLoss, LossSetup, channel_projector, get_layer, resize_like
from hf_segkd.models.outputs import SegmentationOutput
from hf_segkd.values import check_value

Statistics = Literal["image", "batch", "layer"]
Resized = Literal["student", "teacher"]
BATCH_EPS = 1e-6  # added to the deviation, as in PKD's code
IMAGE_EPS = 1e-5  # added to the variance, as in instance and layer norm


class PKDLoss(DistillationLoss):
    """PKD: mean squared error of normalized maps, which measures how well channels correlate with the teacher's.

    Both maps are brought to mean 0 and deviation 1 by their own statistics: `½ · mean over B·C·h·w of (s̃ − t̃)²`,
    which is 1 less the mean correlation of the channels: blind to scale and offset of either map.

    Args:
        setup (`LossSetup`): Shapes of both models' outputs; a 1×1 projector is added when channels differ.
        statistics (`str`, *optional*, defaults to `"image"`): What mean and deviation are taken over: `"image"`, the
            positions of each channel of each image (CanKD's "IN only"); `"batch"`, the positions of each channel in
            all images of the local batch (PKD itself); `"layer"`, channels and positions of each image.
        resize (`str`, *optional*, defaults to `"student"`): Which map is resized when sizes differ: `"student"` to the
            teacher's size or `"teacher"` to the student's.
        layer (`str`, *optional*, defaults to `"features"`): Field to compare, e.g. `"hidden_states.-1"`.

    Returns:
        `torch.Tensor`: Scalar between 0 and 2; 1 for uncorrelated maps. PKD weighs it by 6 to 10 for detectors.

    Raises:
        ValueError: If an option is unknown, a model has no such field, or, in `forward`, a statistic has one value.

    Differs from the original: statistics of each image are the default, because those of a batch make the loss depend
    on the images per device, and a constant channel of the student (a dead ReLU) then has its gradient divided by
    1e-6; width is compared as well as height; "IN only" has the factor ½ too; the projector has no bias, which the
    mean would remove, and PyTorch's initialization. With `statistics: batch`, two processes with half the batch each
    do not train as one with the whole batch; with the default they do.

    Reference: Cao et al., PKD: General Distillation Framework for Object Detectors via Pearson Correlation
    Coefficient, NeurIPS 2022, https://huggingface.co/papers/2207.02039
    """

    paper = "https://huggingface.co/papers/2207.02039"
    citation = """@inproceedings{cao2022pkd,
  title={PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient},
  author={Cao, Weihan and Zhang, Yifan and Gao, Jianfei and Cheng, Anda and Cheng, Ke and Cheng, Jian},
  booktitle={NeurIPS},
  year={2022}
}"""
    time_growth = "BCN"
    memory_growth = "BCN"

    def __init__(
        self,
        setup: LossSetup,
        statistics: Statistics = "image",
        resize: Resized = "student",
        layer: str = "features",
    ):
        super().__init__(setup, layer=layer)
        check_value("pkd: statistics", statistics, Statistics)
        check_value("pkd: resize", resize, Resized)
        self.statistics = statistics
        self.resize = resize
        self.projector = channel_projector(self.student_channels, self.teacher_channels)

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
        student_map = self.projector(get_layer(student, self.layer))
        teacher_map = get_layer(teacher, self.layer)
        if self.resize == "student":
            student_map = resize_like(student_map, teacher_map, align_corners=False)
        else:
            teacher_map = resize_like(teacher_map, student_map, align_corners=False)
        return 0.5 * F.mse_loss(normalize(student_map, self.statistics), normalize(teacher_map, self.statistics))


def normalize(x: Tensor, statistics: str) -> Tensor:
    """`x` (B, C, h, w) less its mean, divided by its deviation; see [`PKDLoss`] for what these are taken over.

    Raises:
        ValueError: If mean and deviation would be those of a single value.
    """
    dim = {"image": (2, 3), "batch": (0, 2, 3), "layer": (1, 2, 3)}[statistics]
    if x.numel() == x.mean(dim).numel():
        raise ValueError(
            f"pkd: statistics '{statistics}' of a map {tuple(x.shape)} are those of one value. Crop larger."
        )
    centered = x - x.mean(dim, keepdim=True)
    if statistics == "batch":
        return centered / (x.std(dim, keepdim=True) + BATCH_EPS)
    return centered * (x.var(dim, correction=0, keepdim=True) + IMAGE_EPS).rsqrt()
