"""Channel-wise distillation."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from hf_segkd.losses.base import DistillationLoss, LossSetup, channel_projector, get_layer, resize_like
from hf_segkd.losses.functional.divergence import softmax_kl
from hf_segkd.models.outputs import SegmentationOutput
from hf_segkd.values import check_positive, check_value

Denominator = Literal["teacher", "student"]
Norm = Literal["channel", "spatial", "channel_mean"]
Divergence = Literal["kl", "mse"]


class CWDLoss(DistillationLoss):
    """Channel-wise distillation: KL between spatial distributions, channel by channel.

    A softmax at `temperature` turns each channel of a map into a distribution over its h·w positions; the teacher's
    is the target: `temperature² / (B·C) · Σ_b Σ_c KL(teacher ‖ student)` with C the teacher's channels.
    Variants of TorchDistiller normalize something else (`norm`) or compare by squared differences (`divergence`).

    Args:
        setup (`LossSetup`): Shapes of both models' outputs; a 1×1 projector is added when channels differ.
        temperature (`float`, *optional*, defaults to `4.0`): Softmax temperature, > 0. Paper: 4.
        layer (`str`, *optional*, defaults to `"features"`): Field to compare, e.g. `"features"` or `"logits"`.
        denominator (`str`, *optional*, defaults to `"teacher"`): Whose channels C counts. CIRKD's code counts the
            `"student"`'s, which makes the loss teacher/student channels times larger when they differ.
        norm (`str`, *optional*, defaults to `"channel"`): What is compared: `"channel"` as above; `"spatial"` a
            softmax over channels at each position, divided by B·h·w; `"channel_mean"` the means of the channels.
        divergence (`str`, *optional*, defaults to `"kl"`): `"kl"`, or `"mse"` for the sum of squared differences in
            its place. TorchDistiller has temperature 1 with `"mse"`.

    Returns:
        `torch.Tensor`: Scalar, in nats times temperature² for `"kl"`; at least 0, and 0 when both agree.

    Raises:
        ValueError: If the temperature is not positive, the denominator, norm or divergence unknown, the KL asked of
            channel means, or the logits' classes disagree.

    Differs from the original: `log_softmax` instead of the log of a softmax, which is NaN where a probability
    underflows; a teacher map of another size is resized to the student's; the combinations that take the logarithm of
    a raw value, NaN where it is negative, are not offered.

    Reference: Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021,
    https://huggingface.co/papers/2011.13256
    """

    paper = "https://huggingface.co/papers/2011.13256"
    citation = """@inproceedings{shu2021channel,
  title={Channel-wise Knowledge Distillation for Dense Prediction},
  author={Shu, Changyong and Liu, Yifan and Gao, Jianfei and Yan, Zheng and Shen, Chunhua},
  booktitle={ICCV},
  year={2021}
}"""
    time_growth = "BCN"
    memory_growth = "one map"
    fused = True

    def __init__(
        self,
        setup: LossSetup,
        temperature: float = 4.0,
        layer: str = "features",
        denominator: Denominator = "teacher",
        norm: Norm = "channel",
        divergence: Divergence = "kl",
    ):
        super().__init__(setup, layer=layer)
        check_positive("cwd: temperature", temperature)
        check_value("cwd: denominator", denominator, Denominator)
        check_value("cwd: norm", norm, Norm)
        check_value("cwd: divergence", divergence, Divergence)
        if (norm, divergence) == ("channel_mean", "kl"):
            raise ValueError("cwd: norm 'channel_mean' has no KL: means are no distribution. Set divergence: mse.")
        if "logits" in layer and self.student_channels != self.teacher_channels:
            raise ValueError(
                f"cwd: {layer} of student and teacher must have the same classes, got {self.student_channels} and "
                f"{self.teacher_channels} channels. A learned projection between classes would hide a wrong teacher."
            )
        self.temperature, self.norm, self.divergence = temperature, norm, divergence
        self.channels = self.teacher_channels if denominator == "teacher" else self.student_channels
        self.projector = channel_projector(self.student_channels, self.teacher_channels)

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
        student_map = self.projector(get_layer(student, self.layer))
        teacher_map = resize_like(get_layer(teacher, self.layer), student_map)
        student_map, teacher_map = student_map.flatten(2), teacher_map.flatten(2)
        batch, _, positions = student_map.shape
        count = positions if self.norm == "spatial" else self.channels
        return self.distance(student_map, teacher_map) * self.temperature**2 / (batch * count)

    def distance(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """Sum over everything of the divergence between maps (B, C, N) at the temperature."""
        dim = -1 if self.norm == "channel" else 1
        if self.divergence == "kl":
            return softmax_kl(student_map, teacher_map, dim, self.temperature)
        student_map, teacher_map = student_map / self.temperature, teacher_map / self.temperature
        if self.norm == "channel_mean":
            return F.mse_loss(student_map.mean(dim=-1), teacher_map.mean(dim=-1), reduction="sum")
        return F.mse_loss(student_map.softmax(dim), teacher_map.softmax(dim), reduction="sum")
