"""Pixel-wise knowledge distillation on the logits."""

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from hf_segkd.losses.base import DistillationLoss, LossSetup, check_same_classes, get_layer, resize_like
from hf_segkd.losses.functional.divergence import softmax_kl
from hf_segkd.models.outputs import SegmentationOutput
from hf_segkd.values import check_positive, check_value

Reduction = Literal["pixel", "element", "cross_entropy_sum"]
Confidence = float | Literal["entropy"] | None


class KDLoss(DistillationLoss):
    """Pixel-wise KD: KL divergence from the teacher's class distribution to the student's, at every position.

    `temperature² / (B·h·w) · Σ KL(softmax(teacher / temperature) ‖ softmax(student / temperature))`, at the student's
    resolution. Ignored pixels take part: a teacher has an opinion about them too.

    Args:
        setup (`LossSetup`): Shapes of both models' logits; the numbers of classes must agree.
        temperature (`float`, *optional*, defaults to `1.0`): Softmax temperature, > 0. CIRKD uses 1.
        reduction (`str`, *optional*, defaults to `"pixel"`): How the sum is scaled, to translate published weights:
            `"pixel"` as above (CIRKD, CSKD); `"element"` divides by the number of classes too and has no temperature²
            (TorchDistiller); `"cross_entropy_sum"` is the cross-entropy with the teacher, divided by h·w but not
            by B (Structured KD, temperature 1 only): its gradient is B times that of `"pixel"`.
        upsample (`float`, *optional*, defaults to `1.0`): Factor by which both logits are first enlarged bilinearly,
            ≥ 1. TorchDistiller's code has 8 as an option; it costs 64 times the memory and no recipe uses it.
        layer (`str`, *optional*, defaults to `"logits"`): Field to compare: `"logits"` or `"aux_logits"`.
        confidence (`float` or `str`, *optional*): Weight of each position by the teacher's own confidence, for
            unlabeled images: a number in (0, 1] counts only positions whose best class has that probability;
            `"entropy"` weighs with `1 − entropy / log K`. The divisor stays B·h·w, so that an image of which the
            teacher is unsure teaches less. By default all positions count alike.

    Returns:
        `torch.Tensor`: Scalar, in nats; at least 0 for the two KL forms, and 0 when both agree.

    Raises:
        ValueError: If the temperature is not positive, the reduction unknown, the factor below 1 or the classes
            disagree.

    Differs from the original: a teacher map of another size is resized to the student's instead of failing. With
    `"cross_entropy_sum"`, two processes with half the batch each have half the gradient of one with the whole batch.

    Reference: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, https://huggingface.co/papers/1503.02531;
    per pixel: Liu et al., CVPR 2019, https://huggingface.co/papers/1903.04197
    """

    paper = "https://huggingface.co/papers/1503.02531"
    citation = """@article{hinton2015distilling,
  title={Distilling the Knowledge in a Neural Network},
  author={Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  journal={arXiv preprint arXiv:1503.02531},
  year={2015}
}"""
    time_growth = "BKN"
    memory_growth = "one map"
    fused = True

    def __init__(
        self,
        setup: LossSetup,
        temperature: float = 1.0,
        reduction: Reduction = "pixel",
        upsample: float = 1.0,
        layer: str = "logits",
        confidence: Confidence = None,
    ):
        super().__init__(setup, layer=layer)
        check_positive("kd: temperature", temperature)
        check_value("kd: reduction", reduction, Reduction)
        if reduction == "cross_entropy_sum" and temperature != 1:
            raise ValueError(
                f"kd: reduction 'cross_entropy_sum' is defined at temperature 1, got {temperature}. Leave it out."
            )
        if not 1 <= upsample:
            raise ValueError(f"kd: upsample must be a factor of at least 1, got {upsample}.")
        check_value("kd: confidence", confidence, Confidence)
        if isinstance(confidence, float | int) and not 0 < confidence <= 1:
            raise ValueError(f"kd: confidence must be a probability in (0, 1] or 'entropy', got {confidence}.")
        if confidence is not None and reduction == "cross_entropy_sum":
            raise ValueError("kd: confidence weighs a KL; reduction 'cross_entropy_sum' is none. Leave one out.")
        self.confidence = confidence
        check_same_classes("kd", self.student_channels, self.teacher_channels)
        self.temperature, self.reduction, self.upsample = temperature, reduction, upsample

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
        student_logits = get_layer(student, self.layer)
        teacher_logits = resize_like(get_layer(teacher, self.layer), student_logits)
        if self.upsample != 1:
            student_logits, teacher_logits = self._enlarge(student_logits), self._enlarge(teacher_logits)
        batch, classes, height, width = student_logits.shape
        if self.confidence is None:
            divergence = softmax_kl(student_logits, teacher_logits, dim=1, temperature=self.temperature)
        else:
            divergence = self._weighted(student_logits, teacher_logits)
        if self.reduction == "cross_entropy_sum":
            teacher_log = teacher_logits.log_softmax(dim=1)
            return (divergence - (teacher_log.exp() * teacher_log).sum()) / (height * width)
        if self.reduction == "element":
            return divergence / (batch * classes * height * width)
        return divergence * self.temperature**2 / (batch * height * width)

    def _weighted(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Sum over positions of the KL times the teacher's confidence."""
        pair = (student_logits, teacher_logits)
        student_log, teacher_log = ((x / self.temperature).log_softmax(dim=1) for x in pair)
        divergence = F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(dim=1)
        log_probabilities = teacher_logits.log_softmax(dim=1)
        if self.confidence == "entropy":
            entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=1)
            weights = 1 - entropy / math.log(len(teacher_logits[0]))
        else:
            weights = (log_probabilities.amax(dim=1).exp() >= self.confidence).to(divergence.dtype)
        return (weights * divergence).sum()

    def _enlarge(self, logits: Tensor) -> Tensor:
        return F.interpolate(logits, scale_factor=self.upsample, mode="bilinear", align_corners=True)
