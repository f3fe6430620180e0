"""Boundary IoU: agreement of class contours; mean IoU is dominated by interiors."""

import math

import torch
from torch import Tensor

BAND = 0.02  # of the image's diagonal, as in the paper


def boundary_counts(predictions: Tensor, references: Tensor, num_labels: int, ignore_index: int = 255) -> Tensor:
    """Count pixels in the bands along the contours of each class, for one image.

    The band of a class is the part of its region within `d` pixels (both axes) of a pixel of another kind or of the
    image's border; `d` is 2 % of the diagonal, at least 1. Pixels ignored in the reference are ignored in both maps,
    so that their outline is a contour in both.

    Args:
        predictions (`torch.Tensor` of shape `(H, W)`): Class ids.
        references (`torch.Tensor` of shape `(H, W)`): Class ids, or `ignore_index`.
        num_labels (`int`): Number of classes K.
        ignore_index (`int`, *optional*, defaults to `255`): Reference value of pixels that count nowhere.

    Returns:
        `torch.Tensor`: int64 (3, K): pixels in both bands, in the reference's, in the prediction's.

    Reference: Cheng et al., Boundary IoU, CVPR 2021, https://huggingface.co/papers/2103.16562
    """
    ignored = references == ignore_index
    references = torch.where(ignored, num_labels, references.int())
    predictions = torch.where(ignored, num_labels, predictions.int())
    distance = max(1, round(BAND * math.hypot(*references.shape)))
    references = torch.where(_band(references, distance), references, num_labels)
    predictions = torch.where(_band(predictions, distance), predictions, num_labels)
    both = torch.where(references == predictions, references, num_labels)
    counts = [
        torch.bincount(x.flatten(), minlength=num_labels + 1)[:num_labels] for x in (both, references, predictions)
    ]
    return torch.stack(counts)


def boundary_iou(counts: Tensor) -> Tensor:
    """IoU (..., K) of summed [`boundary_counts`] (..., 3, K), float64; NaN for classes without a contour."""
    both, references, predictions = counts.double().unbind(dim=-2)
    return both / (references + predictions - both)


def _band(labels: Tensor, distance: int) -> Tensor:
    """Pixels with another label, or the border, within `distance` pixels."""
    band = torch.ones_like(labels, dtype=torch.bool)
    if min(labels.shape) <= 2 * distance:
        return band
    highest, lowest = labels, -labels
    for axis in (0, 1):
        highest, lowest = (_sliding_max(x, 2 * distance + 1, axis) for x in (highest, lowest))
    band[distance:-distance, distance:-distance] = highest != -lowest
    return band


def _sliding_max(x: Tensor, length: int, axis: int) -> Tensor:
    """Maximum over each run of `length` along `axis`, in log2(length) passes."""
    covered = 1
    while covered < length:
        shift = min(covered, length - covered)
        size = x.shape[axis] - shift
        x = torch.maximum(x.narrow(axis, 0, size), x.narrow(axis, shift, size))
        covered += shift
    return x
