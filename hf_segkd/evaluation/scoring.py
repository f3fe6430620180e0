"""Scores of any segmentation model on a dataset, at the labels' own size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import PreTrainedModel

from hf_segkd.data.transforms import collate
from hf_segkd.distributed import rank, world_size
from hf_segkd.evaluation.boundary import boundary_counts, boundary_iou
from hf_segkd.evaluation.confusion import confusion_matrix, scores
from hf_segkd.evaluation.inference import Protocol, predict
from hf_segkd.models import InputNormalization, upsamples_with_align_corners

WHOLE = Protocol()


@dataclass(frozen=True)
class Evaluation:
    """What was counted on a dataset, from which every score is read.

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


@torch.inference_mode()
def predictions(
    model: PreTrainedModel,
    processor,
    dataset: Dataset,
    protocol: Protocol = WHOLE,
    device: str | torch.device = "cpu",
    num_workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Run `model` over a dataset, one image at a time.

    Args:
        model (`PreTrainedModel`): As [`~hf_segkd.models.load_segmenter`] returns it; is put in eval mode. Its weights
            may be in half precision.
        processor: The image processor that the model was trained with; its mean, std and channel order are used.
        dataset (`torch.utils.data.Dataset`): Items with uint8 RGB `pixel_values` (3, H, W) and `labels` (H, W).
        protocol ([`~hf_segkd.evaluation.inference.Protocol`], *optional*): Whole image at single scale by default.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where the model runs.
        num_workers (`int`, *optional*, defaults to `0`): Processes that read images.

    Yields:
        `tuple[Tensor, Tensor, Tensor]`: uint8 image (3, H, W), labels (H, W) and predicted classes (H, W).
    """
    model = model.to(device).eval()
    dtype = next(model.parameters()).dtype
    normalization = InputNormalization.from_processor(processor).to(device)
    align_corners = upsamples_with_align_corners(model.config)
    for batch in DataLoader(dataset, batch_size=1, num_workers=num_workers, collate_fn=collate):
        pixel_values, labels = batch["pixel_values"].to(device), batch["labels"][0].to(device)
        normalised = normalization(pixel_values).to(dtype)
        yield batch["pixel_values"][0], labels, predict(model, normalised, protocol, labels.shape, align_corners)


def evaluate_model(
    model: PreTrainedModel,
    processor,
    dataset: Dataset,
    protocol: Protocol = WHOLE,
    ignore_index: int = 255,
    device: str | torch.device = "cpu",
    num_workers: int = 0,
    num_labels: int | None = None,
) -> Evaluation:
    """Count the predictions of `model` on `dataset`; with several processes, each image is counted by one of them.

    Args are those of [`predictions`], plus `ignore_index`, the label value that is not scored, and `num_labels`, where
    the model's logits are mapped to other classes than its own. Every process gets the whole result.
    """
    num_labels = num_labels or model.config.num_labels
    mine = range(rank(), len(dataset), world_size())
    matrix = torch.zeros(num_labels, num_labels, dtype=torch.int64)
    boundary = torch.zeros(3, num_labels, dtype=torch.int64)
    per_image = []
    for _, labels, predicted in predictions(model, processor, Subset(dataset, mine), protocol, device, num_workers):
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
