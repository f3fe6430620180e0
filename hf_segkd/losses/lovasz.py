"""Lovász-Softmax: a surrogate of the IoU that can be differentiated."""

import torch.nn.functional as F
from torch import Tensor

from hf_segkd.losses.base import DistillationLoss, LossSetup, get_layer, map_shape, resize_like
from hf_segkd.losses.dice import mean_over_present
from hf_segkd.models.outputs import SegmentationOutput


class LovaszLoss(DistillationLoss):
    """Lovász-Softmax: the IoU itself as a loss, extended from right and wrong pixels to probabilities.

    Of each class, the errors m (1 − p where it is labeled, p elsewhere) are sorted, largest first, and weighed by how
    much the Jaccard loss grows when the pixels up to each are wrong: `Σ m_j · (Δ_j − Δ_{j−1})`,
    `Δ_j = 1 − (G − F_j) / (G + N_j)`, with G labeled pixels, of which F_j, and N_j others, are among the first j.

    Args:
        setup (`LossSetup`): `ignore_index` and `align_corners` (how logits are upsampled) are used.
        layer (`str`, *optional*, defaults to `"logits"`): The class scores: `"logits"` or `"aux_logits"`.

    Returns:
        `torch.Tensor`: Scalar between 0 and 1, one less the mean IoU where all probabilities are 0 or 1; 0 (with a
        graph) when every pixel is ignored.

    Raises:
        ValueError: If the student has no such field.

    Differs from the original: its option `per_image` is the rule, with the classes that are labeled in the image
    (`classes="present"` there): the loss does not depend on the images per device. Increments of Δ are computed
    without subtracting neighbors, which in float32 are almost equal.

    Reference: Berman et al., The Lovász-Softmax Loss, CVPR 2018, https://huggingface.co/papers/1705.08790
    """

    paper = "https://huggingface.co/papers/1705.08790"
    citation = """@inproceedings{berman2018lovasz,
  title={The Lov{\\'a}sz-Softmax Loss: A Tractable Surrogate for the Optimization of the Intersection-over-Union
    Measure in Neural Networks},
  author={Berman, Maxim and Rannen Triki, Amal and Blaschko, Matthew B.},
  booktitle={Conference on Computer Vision and Pattern Recognition (CVPR)},
  year={2018}
}"""
    needs_teacher = False
    time_growth = "BKHW log HW"
    memory_growth = "BKHW"

    def __init__(self, setup: LossSetup, layer: str = "logits"):
        super().__init__(setup, layer)
        map_shape(setup.student, layer, "student")

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput | None, labels: Tensor) -> Tensor:
        logits = resize_like(get_layer(student, self.layer), labels, self.setup.align_corners)
        seen = labels != self.setup.ignore_index
        target = F.one_hot(labels.long().where(seen, 0), logits.shape[1]).movedim(-1, 1).bool() & seen[:, None]
        probabilities = logits.softmax(dim=1)
        errors = (1 - probabilities).where(target, probabilities).flatten(2)
        # Ignored pixels come last, behind all labeled ones: no intersection is left there, so their weight is 0.
        errors = errors.masked_fill(~seen.flatten(1)[:, None], -1)
        errors, order = errors.sort(dim=2, descending=True, stable=True)
        labeled = target.flatten(2).gather(2, order)
        weights = _increments(labeled).to(errors)
        return mean_over_present((errors * weights).sum(dim=2), labeled.any(dim=2))


def _increments(labeled: Tensor) -> Tensor:
    """What each pixel adds to the Jaccard loss when it and all before it are wrong, float64.

    A labeled pixel leaves the union and shrinks the intersection by one: 1 / union. Another one extends the union from
    u − 1 to u: intersection / (u · (u − 1)).
    """
    total = labeled.sum(dim=2, keepdim=True)
    intersection = (total - labeled.cumsum(dim=2)).double()
    union = (total + (~labeled).cumsum(dim=2)).double()
    return (1 / union).where(labeled, intersection / (union * (union - 1)).clamp(min=1))
