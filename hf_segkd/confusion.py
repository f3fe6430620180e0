"""Confusion matrices and the scores read off them, in torch alone: `evaluate` takes seconds to import."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def confusion_matrices(predictions: Tensor, references: Tensor, num_labels: int, ignore_index: int = 255) -> Tensor:
    """Count (reference, prediction) pairs, one matrix per image.

    Args:
        predictions (`torch.Tensor`): Class ids (B, H, W), any integer type, any device.
        references (`torch.Tensor`): Class ids (B, H, W) on the same device.
        num_labels (`int`): Number of classes K.
        ignore_index (`int`, *optional*, defaults to `255`): Reference value of pixels that count nowhere, whatever is
            predicted there.

    Returns:
        `torch.Tensor`: int64 (B, K, K), rows = reference, columns = prediction.

    Raises:
        `ValueError`: If shapes differ, or a counted pixel holds a value outside 0 to K - 1.
    """
    if predictions.shape != references.shape:
        raise ValueError(
            f"predictions {tuple(predictions.shape)} and references {tuple(references.shape)} differ in shape. "
            "Resize the logits to the size of the labels before taking the argmax."
        )
    if predictions.is_floating_point() or references.is_floating_point():
        raise ValueError(
            f"Expected integer class ids, got predictions of type {predictions.dtype} and references of type "
            f"{references.dtype}. Take the argmax over classes first."
        )
    # uint8 comparisons wrap (255 == -1), hence the wide type.
    predictions, references = predictions.flatten(1).long(), references.flatten(1).long()
    cells = num_labels**2
    valid = (references >= 0) & (references < num_labels) & (predictions >= 0) & (predictions < num_labels)
    # Two more buckets, ignored and invalid pixels: far cheaper than selecting the valid ones first.
    index = torch.where(valid, references * num_labels + predictions, cells + 1)
    index.masked_fill_(references == ignore_index, cells)
    index += torch.arange(len(index), device=index.device)[:, None] * (cells + 2)
    counts = torch.bincount(index.flatten(), minlength=len(index) * (cells + 2)).view(len(index), cells + 2)
    if counts[:, -1].any():
        _raise_invalid(predictions, references, num_labels, ignore_index)
    return counts[:, :cells].reshape(-1, num_labels, num_labels)


def _raise_invalid(predictions: Tensor, references: Tensor, num_labels: int, ignore_index: int) -> None:
    counted = references != ignore_index
    for name, values in (("references", references[counted]), ("predictions", predictions[counted])):
        wrong = values[(values < 0) | (values >= num_labels)].unique().tolist()
        if wrong:
            raise ValueError(
                f"{name} hold the class ids {wrong[:10]}, allowed are 0 to {num_labels - 1} (and {ignore_index}, "
                "ignored, in references). Check num_labels and the mapping from raw ids to train ids."
            )


def confusion_matrix(predictions: Tensor, references: Tensor, num_labels: int, ignore_index: int = 255) -> Tensor:
    """Like [`confusion_matrices`], for inputs of any shape counted into one int64 (K, K) matrix."""
    if predictions.shape == references.shape:
        predictions, references = predictions.reshape(1, -1), references.reshape(1, -1)
    return confusion_matrices(predictions, references, num_labels, ignore_index)[0]


def scores(matrix: Tensor) -> dict[str, Any]:
    """Segmentation scores of a confusion matrix, all fractions, with `evaluate`'s keys for mean IoU.

    IoU = intersection / union and accuracy = intersection / reference pixels, per class. A class in neither prediction
    nor reference has IoU NaN and is left out of `mean_iou`; `mean_iou_all` counts it as 0, as the code of SKD, CIRKD
    and CSKD does; `frequency_weighted_iou` weighs each class by its share of the reference pixels.

    Args:
        matrix (`torch.Tensor`): Counts (K, K), rows = reference, columns = prediction.

    Returns:
        `dict`: `mean_iou`, `mean_accuracy`, `overall_accuracy`, `frequency_weighted_iou` (`float`, NaN without counted
        pixels), `mean_iou_all` (`float`) and `per_category_iou`, `per_category_accuracy` (float64 arrays of K values).
    """
    counts = matrix.cpu().numpy().astype(np.float64)
    intersection, references = np.diag(counts), counts.sum(axis=1)
    union = references + counts.sum(axis=0) - intersection
    nan = np.full(len(counts), np.nan)
    iou = np.divide(intersection, union, out=nan.copy(), where=union > 0)
    accuracy = np.divide(intersection, references, out=nan.copy(), where=references > 0)
    total = references.sum()
    return {
        "mean_iou": _mean(iou),
        "mean_accuracy": _mean(accuracy),
        "overall_accuracy": float(intersection.sum() / total) if total > 0 else float("nan"),
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
        "mean_iou_all": float(np.nan_to_num(iou).mean()),
        "frequency_weighted_iou": float(references @ np.nan_to_num(iou) / total) if total > 0 else float("nan"),
    }


def _mean(values: np.ndarray) -> float:
    """Mean of the numbers among `values`; `np.nanmean` warns when there are none."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else float("nan")
