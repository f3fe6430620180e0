"""Confusion matrices and the scores read off them, in torch alone: `evaluate` takes seconds to import."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

BYTES = 256
CHUNK = 2**18  # pixels


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
    count = _count_bytes if num_labels <= BYTES and all(map(_fits_bytes, (predictions, references))) else _count
    matrices = []
    for prediction, reference in zip(predictions, references, strict=True):
        matrix, invalid = count(prediction.flatten(), reference.flatten(), num_labels, ignore_index)
        if invalid:
            _raise_invalid(prediction, reference, num_labels, ignore_index)
        matrices.append(matrix)
    return torch.stack(matrices) if matrices else torch.zeros(0, num_labels, num_labels, dtype=torch.int64)


def _fits_bytes(values: Tensor) -> bool:
    if values.dtype == torch.uint8 or values.numel() == 0:
        return True
    low, high = values.aminmax()
    return bool(low >= 0) and bool(high < BYTES)


def _count_bytes(predictions: Tensor, references: Tensor, num_labels: int, ignore_index: int) -> tuple[Tensor, bool]:
    """Histogram of all byte pairs; the matrix is its top-left corner, so that no pixel has to be filtered."""
    pairs = torch.zeros(BYTES * BYTES, dtype=torch.int64, device=references.device)
    for prediction, reference in _chunks(predictions, references):
        pairs += torch.bincount(reference.int() * BYTES + prediction, minlength=BYTES * BYTES)
    pairs = pairs.view(BYTES, BYTES)
    if 0 <= ignore_index < BYTES:
        pairs[ignore_index] = 0
    matrix = pairs[:num_labels, :num_labels].clone()
    return matrix, bool(matrix.sum() != pairs.sum())


def _count(predictions: Tensor, references: Tensor, num_labels: int, ignore_index: int) -> tuple[Tensor, bool]:
    """The same for any integers: two more buckets take the ignored and the invalid pixels."""
    cells = num_labels**2
    counts = torch.zeros(cells + 2, dtype=torch.int64, device=references.device)
    for prediction, reference in _chunks(predictions.long(), references.long()):
        valid = (reference >= 0) & (reference < num_labels) & (prediction >= 0) & (prediction < num_labels)
        index = torch.where(valid, reference * num_labels + prediction, cells + 1)
        index.masked_fill_(reference == ignore_index, cells)
        counts += torch.bincount(index, minlength=cells + 2)
    return counts[:cells].view(num_labels, num_labels), bool(counts[-1])


def _chunks(predictions: Tensor, references: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    # On a CPU a chunk stays in the cache; on a GPU one launch is better than many.
    size = max(1, len(references)) if references.is_cuda else CHUNK
    return zip(predictions.split(size), references.split(size), strict=True)


def _raise_invalid(predictions: Tensor, references: Tensor, num_labels: int, ignore_index: int) -> None:
    predictions, references = predictions.long(), references.long()  # a byte never equals -1
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
    and CSKD does; `frequency_weighted_iou` weighs each class by its share of the reference pixels. Dice, the F1 score
    of the pixels, is twice the intersection / (reference pixels + predicted pixels), NaN and left out of `mean_dice`
    where IoU is; per class it is 2 IoU / (1 + IoU).

    Args:
        matrix (`torch.Tensor`): Counts (K, K), rows = reference, columns = prediction.

    Returns:
        `dict`: `mean_iou`, `mean_dice`, `mean_accuracy`, `overall_accuracy`, `frequency_weighted_iou` (`float`, NaN
        without counted pixels), `mean_iou_all` (`float`) and `per_category_iou`, `per_category_dice`,
        `per_category_accuracy` (float64 arrays of K values).
    """
    counts = matrix.cpu().numpy().astype(np.float64)
    intersection, references = np.diag(counts), counts.sum(axis=1)
    union = references + counts.sum(axis=0) - intersection
    nan = np.full(len(counts), np.nan)
    iou = np.divide(intersection, union, out=nan.copy(), where=union > 0)
    dice = np.divide(2 * intersection, union + intersection, out=nan.copy(), where=union > 0)
    accuracy = np.divide(intersection, references, out=nan.copy(), where=references > 0)
    total = references.sum()
    return {
        "mean_iou": _mean(iou),
        "mean_dice": _mean(dice),
        "mean_accuracy": _mean(accuracy),
        "overall_accuracy": float(intersection.sum() / total) if total > 0 else float("nan"),
        "per_category_iou": iou,
        "per_category_dice": dice,
        "per_category_accuracy": accuracy,
        "mean_iou_all": float(np.nan_to_num(iou).mean()),
        "frequency_weighted_iou": float(references @ np.nan_to_num(iou) / total) if total > 0 else float("nan"),
    }


def _mean(values: np.ndarray) -> float:
    """Mean of the numbers among `values`; `np.nanmean` warns when there are none."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else float("nan")
