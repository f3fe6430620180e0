"""Boundary privileged distillation."""

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_segkd.losses.base import DistillationLoss, LossSetup, check_same_classes, get_layer, resize_like
from hf_segkd.models.outputs import SegmentationOutput
from hf_segkd.values import check_positive

NO_CLASS = 2**15 - 1  # above any class id, in int16
SMALLEST = 1e-6  # of a class's summed mask, in positions: far below any pixel's share of a position


class BPKDLoss(DistillationLoss):
    """BPKD: logits are distilled at the borders of the labels and inside of objects by two separate losses.

    M_c (`class_edges`) is the fraction of a position where a window of the labels holds class c and another class.
    `edge`: `T²/B Σ_b Σ_c Σ_i M_c KL_i / Σ_i M_c`, KL_i over the classes of the logits times M at position i: every
    class's border counts alike. `body`: `T²/(B·K) Σ_b Σ_c KL` between softmaxes over positions of the logits times
    1 − M, as in [`CWDLoss`]: the shape of a class. The teacher is the target in both.

    Args:
        setup (`LossSetup`): Shapes of both models' logits; the numbers of classes must agree.
        width (`int`, *optional*, defaults to `7`): Side of the window in pixels of the labels, odd, from 3. A
            straight border is then width − 1 pixels wide.
        temperature (`float`, *optional*, defaults to `1.0`): T of both softmaxes, > 0.
        layer (`str`, *optional*, defaults to `"logits"`): Field to compare: `"logits"` or `"aux_logits"`.

    Returns:
        `dict[str, torch.Tensor]`: Scalars `edge` and `body`, in nats times T²; at least 0, and 0 when both agree.
        Without a border (unlabeled images) `edge` is 0 and `body` the distillation of the whole map.

    Raises:
        ValueError: If the width is even or below 3, the temperature not positive, or the classes disagree.

    Differs from the original: its training code is not public and its text was at hand only in part, so this follows
    two public re-implementations of its equations. They agree on these and on the weights, 20 for `body`
    and 50·2 for `edge`, the 2 being the paper's factor α of every class; they disagree on the temperature (1 or 4) and
    on the divisor of a class in `edge` (the summed mask, as here, or a count of positions). Ours: a pixel without a
    class makes no border and otherwise takes part; a teacher map of another size is resized to the student's.

    Reference: Liu et al., BPKD: Boundary Privileged Knowledge Distillation for Semantic Segmentation, WACV 2024,
    https://huggingface.co/papers/2306.08075
    """

    paper = "https://huggingface.co/papers/2306.08075"
    citation = """@inproceedings{liu2024bpkd,
  title={BPKD: Boundary Privileged Knowledge Distillation for Semantic Segmentation},
  author={Liu, Liyang and Wang, Zihan and Phan, Minh Hieu and Zhang, Bowen and Ge, Jinchao and Liu, Yifan},
  booktitle={WACV},
  year={2024}
}"""
    time_growth = "BKN + KHW"
    memory_growth = "BKN"

    def __init__(
        self,
        setup: LossSetup,
        width: int = 7,
        temperature: float = 1.0,
        layer: str = "logits",
    ):
        super().__init__(setup, layer=layer)
        if not isinstance(width, int) or width < 3 or width % 2 == 0:
            raise ValueError(f"bpkd: width must be an odd number of pixels from 3, got {width!r}.")
        check_positive("bpkd: temperature", temperature)
        check_same_classes("bpkd", self.student_channels, self.teacher_channels)
        self.width = width
        self.temperature = temperature

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> dict[str, Tensor]:
        student_logits = get_layer(student, self.layer)
        logits = student_logits, resize_like(get_layer(teacher, self.layer), student_logits)
        known = (labels >= 0) & (labels < self.setup.num_labels) & (labels != self.setup.ignore_index)
        labels = labels.masked_fill(~known, -1)[:, None]
        mask = class_edges(labels, self.width, student_logits)
        body = [(x * (1 - mask) / self.temperature).flatten(2) for x in logits]
        edge = [x * mask / self.temperature for x in logits]
        weights = mask / mask.sum(dim=(2, 3), keepdim=True).clamp(min=SMALLEST)
        edge_kl = (weights.sum(dim=1) * divergence(*edge, dim=1)).sum() / mask.shape[0]
        body_kl = divergence(*body, dim=2).sum() / (mask.shape[0] * mask.shape[1])
        return {"edge": edge_kl * self.temperature**2, "body": body_kl * self.temperature**2}


@torch.no_grad()
def edges(labels: Tensor, width: int) -> Tensor:
    """Where a window of `width` × `width` pixels holds two classes: boolean, of the shape of labels (B, 1, H, W).

    A negative label is no class. Beyond the image there is none either.
    """
    highest = dilate(labels.to(torch.int16), width, outside=-1)
    negated = -labels.masked_fill(labels < 0, NO_CLASS).to(torch.int16)
    return highest > -dilate(negated, width, outside=-NO_CLASS)


@torch.no_grad()
def class_edges(labels: Tensor, width: int, reference: Tensor) -> Tensor:
    """Share of each class's border in each position of `reference` (B, K, h, w), of its shape, in [0, 1].

    Dilation less erosion of each class, for labels (B, 1, H, W) in which a negative number is no class. One class at
    a time: all at once would take K maps of the size of the image.
    """
    both = edges(labels, width)
    classes = (dilate(labels == k, width, outside=False) & both for k in range(reference.shape[1]))
    return torch.cat([shares(x, reference) for x in classes], dim=1)


def shares(mask: Tensor, reference: Tensor) -> Tensor:
    """Fraction of the pixels of each position of `reference` (B, K, h, w) that lie in `mask` (B, 1, H, W)."""
    return F.adaptive_avg_pool2d(mask.float(), reference.shape[-2:]).to(reference.dtype)


def dilate(x: Tensor, width: int, outside: int | bool) -> Tensor:
    """Maximum of `x` (B, 1, H, W) over the window around each pixel; beyond the image lies `outside`.

    Shifted copies, rows first: on booleans many times faster than max pooling on the CPU.
    """
    height, columns = x.shape[-2:]
    padded = F.pad(x, (0, 0, width // 2, width // 2), value=outside)
    rows = reduce(torch.maximum, (padded[:, :, i : i + height] for i in range(width)))
    padded = F.pad(rows, (width // 2, width // 2), value=outside)
    return reduce(torch.maximum, (padded[..., i : i + columns] for i in range(width)))


def divergence(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """KL(teacher ‖ student) of the softmaxes over `dim`, which is summed away."""
    student_log, teacher_log = student.log_softmax(dim), teacher.log_softmax(dim)
    return F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(dim)
