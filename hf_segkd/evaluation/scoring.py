"""Scores of any segmentation model on a dataset, at the labels' own size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from hf_segkd.data.transforms import collate
from hf_segkd.distributed import rank, world_size
from hf_segkd.evaluation.boundary import boundary_counts, boundary_iou
from hf_segkd.evaluation.confusion import confusion_matrix, scores
from hf_segkd.evaluation.progress import progress
from hf_segkd.evaluation.segmenter import BaseSegmenter


@dataclass(frozen=True)
class Evaluation:
    """Counts over a dataset, from which all scores are derived.

    Args:
        matrix (`torch.Tensor` of shape `(K, K)`): int64 pixels, rows = reference, columns = prediction.
        boundary (`torch.Tensor` of shape `(3, K)`): Summed [`~hf_segkd.evaluation.boundary.boundary_counts`].
        per_image (`torch.Tensor` of shape `(N, 2, K)`): int64 intersection and union of each image and class.
    """

    matrix: Tensor
    boundary: Tensor
    per_image: Tensor

    def scores(self) -> dict:
        """[`hf_segkd.evaluation.confusion.scores`] plus `per_category_boundary_iou` and `boundary_iou`, their mean."""
        boundary = boundary_iou(self.boundary).numpy()
        mean = float(np.nanmean(boundary)) if not np.isnan(boundary).all() else float("nan")
        return {**scores(self.matrix), "per_category_boundary_iou": boundary, "boundary_iou": mean}

    def image_iou(self) -> Tensor:
        """Mean IoU (N,) of each image over the classes it shows or predicts; NaN for one without labels."""
        intersection, union = self.per_image.double().unbind(dim=1)
        return (intersection / union).nanmean(dim=1)


def predictions(
    segmenter: BaseSegmenter, dataset: Dataset, num_workers: int = 0, title: str | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Segment a dataset, one image at a time.

    Args:
        segmenter ([`~hf_segkd.evaluation.segmenter.BaseSegmenter`]): A PyTorch model or an exported file.
        dataset (`torch.utils.data.Dataset`): Items with uint8 RGB `pixel_values` (3, H, W) and `labels` (H, W).
        num_workers (`int`, *optional*, defaults to `0`): Processes that read images.
        title (`str`, *optional*): Shown with the progress; none is shown without it.

    Yields:
        `tuple[Tensor, Tensor, Tensor]`: uint8 image (3, H, W), labels (H, W) and predicted classes (H, W), the latter
        two where the segmenter runs.
    """
    batches = DataLoader(dataset, batch_size=1, num_workers=num_workers, collate_fn=collate)
    for batch in progress(batches, len(dataset), title) if title else batches:
        labels = batch["labels"][0]
        predicted = segmenter(batch["pixel_values"], labels.shape)[0]
        yield batch["pixel_values"][0], labels.to(predicted.device), predicted


def evaluate(
    segmenter: BaseSegmenter,
    dataset: Dataset,
    num_labels: int | None = None,
    ignore_index: int = 255,
    num_workers: int = 0,
    title: str | None = None,
) -> Evaluation:
    """Count the predictions of a segmenter on a dataset; with several processes, each image is counted by one of them.

    Args:
        segmenter, dataset, num_workers, title: As for [`predictions`].
        num_labels (`int`, *optional*): Number of classes K; by default the segmenter's. To be given where a model's
            logits are mapped to other classes than its own.
        ignore_index (`int`, *optional*, defaults to `255`): Label value that is not scored.

    Returns:
        [`Evaluation`]: Every process gets the whole result.
    """
    num_labels = num_labels or segmenter.num_labels
    mine = Subset(dataset, range(rank(), len(dataset), world_size()))
    matrix = torch.zeros(num_labels, num_labels, dtype=torch.int64)
    boundary = torch.zeros(3, num_labels, dtype=torch.int64)
    per_image = []
    for _, labels, predicted in predictions(segmenter, mine, num_workers, title):
        counts = confusion_matrix(predicted, labels, num_labels, ignore_index)
        matrix += counts.cpu()
        boundary += boundary_counts(predicted, labels, num_labels, ignore_index).cpu()
        intersection = counts.diagonal()
        per_image.append(torch.stack([intersection, counts.sum(0) + counts.sum(1) - intersection]).cpu())
    if world_size() == 1:
        return Evaluation(matrix, boundary, torch.stack(per_image))
    shares = gather_object([(matrix, boundary, per_image)])
    per_image = [shares[index % len(shares)][2][index // len(shares)] for index in range(len(dataset))]
    return Evaluation(sum(x[0] for x in shares), sum(x[1] for x in shares), torch.stack(per_image))
