"""Cross-entropy with the labels: the only loss that needs no teacher."""

import math

import torch
from torch import Tensor

from hf_segkd.losses.base import DistillationLoss, LossSetup
from hf_segkd.losses.functional.cross_entropy import upsampled_cross_entropy
from hf_segkd.models.outputs import SegmentationOutput


class TaskLoss(DistillationLoss):
    """Pixel-wise cross-entropy with the labels, at label size, plus the auxiliary head's.

    Logits are upsampled bilinearly to the labels; the mean runs over the pixels that are not ignored.

    Args:
        setup (`LossSetup`): `num_labels`, `ignore_index` and `align_corners` (how logits are upsampled) are used.
        aux_weight (`float`, *optional*, defaults to `0.4`): Weight of the auxiliary head's cross-entropy, for students
            that have one. All four original repositories use 0.4.
        class_weights (`list[float]` or `str`, *optional*): What a pixel of each class counts in the mean, for rare
            classes; K positive numbers, as in `torch.nn.CrossEntropyLoss`. By default all pixels count alike. In a
            recipe also a formula of [`hf_segkd.training.class_weights`], computed from the training split.

    Raises:
        ValueError: If `class_weights` are not K positive numbers.

    Returns:
        `torch.Tensor`: Scalar, in nats; log K for uniform logits. 0 (with a graph) when every pixel is ignored.

    Differs from the original: a batch without a labeled pixel gives 0 instead of NaN; logits are upsampled band by
    band, the same value with memory O(B·K·h·w) instead of O(B·K·H·W). As there, the mean is over the local batch:
    processes with unequal numbers of labeled pixels do not train as one with the whole batch.
    """

    needs_teacher = False
    time_growth = "BKHW"
    memory_growth = "one band of rows"
    fused = True

    def __init__(self, setup: LossSetup, aux_weight: float = 0.4, class_weights: list[float] | str | None = None):
        super().__init__(setup)
        self.aux_weight = aux_weight
        weights = None if class_weights is None else _checked(class_weights, setup.num_labels)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput | None, labels: Tensor) -> Tensor:
        loss = self._cross_entropy(student.logits, labels)
        if student.aux_logits is not None and self.aux_weight:
            loss = loss + self.aux_weight * self._cross_entropy(student.aux_logits, labels)
        return loss

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        setup = self.setup
        return upsampled_cross_entropy(logits, labels, setup.ignore_index, setup.align_corners, self.class_weights)


def _checked(weights: list[float] | str, num_labels: int) -> Tensor:
    if isinstance(weights, str):
        raise ValueError(
            f"class_weights must be {num_labels} positive numbers, got '{weights}'. hf-segkd distill computes them by "
            "a formula; from Python, call hf_segkd.training.class_weights.resolve_class_weights first."
        )
    numbers = [x for x in weights if isinstance(x, int | float) and math.isfinite(x) and x > 0]
    if len(numbers) != len(weights) or len(weights) != num_labels:
        raise ValueError(f"class_weights must be {num_labels} positive numbers, one per class, got {weights}.")
    return torch.tensor(numbers)
