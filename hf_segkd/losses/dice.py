"""Dice loss of V-Net: the overlap of predicted and labeled pixels, class by class."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_segkd.losses.base import DistillationLoss, LossSetup, get_layer, map_shape, resize_like
from hf_segkd.models.outputs import SegmentationOutput


class DiceLoss(DistillationLoss):
    """Dice: one less the overlap of predicted and labeled pixels, for objects that cover few of them.

    `1 − 2 Σ p·g / (Σ p² + Σ g²)` over the pixels of an image that are not ignored, where p is the probability of a
    class at label size and g is 1 where it is labeled. Averaged over the classes that are labeled in the image, then
    over the images with labels. An absent class has no overlap to gain: its gradient is zero, so it is left out.

    Args:
        setup (`LossSetup`): `ignore_index` and `align_corners` (how logits are upsampled) are used.
        layer (`str`, *optional*, defaults to `"logits"`): The class scores: `"logits"` or `"aux_logits"`.

    Returns:
        `torch.Tensor`: Scalar between 0 and 1; 0 (with a graph) when every pixel is ignored.

    Raises:
        ValueError: If the student has no such field.

    Differs from the original: every class in place of the foreground alone, the background too. The sums are those of
    one image, as there (a batch of one volume), so that the loss does not depend on the images per device.

    Reference: Milletari et al., V-Net, 3DV 2016, https://huggingface.co/papers/1606.04797
    """

    paper = "https://huggingface.co/papers/1606.04797"
    citation = """@inproceedings{milletari2016vnet,
  title={V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation},
  author={Milletari, Fausto and Navab, Nassir and Ahmadi, Seyed-Ahmad},
  booktitle={International Conference on 3D Vision (3DV)},
  year={2016}
}"""
    needs_teacher = False
    time_growth = "BKHW"
    memory_growth = "BKHW"

    def __init__(self, setup: LossSetup, layer: str = "logits"):
        super().__init__(setup, layer)
        map_shape(setup.student, layer, "student")

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput | None, labels: Tensor) -> Tensor:
        logits = resize_like(get_layer(student, self.layer), labels, self.setup.align_corners)
        seen = labels != self.setup.ignore_index
        target = F.one_hot(labels.long().where(seen, 0), logits.shape[1]).movedim(-1, 1) * seen[:, None]
        probabilities = logits.softmax(dim=1) * seen[:, None]
        overlap = (probabilities * target).sum(dim=(2, 3))
        labeled = target.sum(dim=(2, 3))
        dice = 2 * overlap / (probabilities.square().sum(dim=(2, 3)) + labeled).clamp(min=1e-12)
        return mean_over_present(1 - dice, labeled > 0)


def mean_over_present(values: Tensor, present: Tensor) -> Tensor:
    """Mean of values (B, K) over the classes that are present in an image, then over the images that have any."""
    count = present.sum(dim=1)
    per_image = values.where(present, torch.zeros_like(values)).sum(dim=1) / count.clamp(min=1)
    return per_image.sum() / (count > 0).sum().clamp(min=1)
