"""mIoU of any segmentation model on a dataset, at the labels' own size."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from hf_segkd.confusion import confusion_matrix, scores
from hf_segkd.data.transforms import collate
from hf_segkd.models import InputNormalization, upsamples_with_align_corners

PROTOCOL = "whole image, single scale, at label size"


def upsampled_argmax(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Bring logits (B, K, h, w) bilinearly to `size` (H, W) and return the best class of each pixel, (B, H, W)."""
    if logits.shape[-2:] != tuple(size):
        logits = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=align_corners)
    return logits.argmax(dim=1)


@torch.inference_mode()
def predictions(
    model: PreTrainedModel, processor, dataset: Dataset, device: str | torch.device = "cpu", num_workers: int = 0
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Run `model` over a dataset, one whole image at a time.

    Args:
        model (`PreTrainedModel`): As [`~hf_segkd.models.load_segmenter`] returns it; is put in eval mode.
        processor: The image processor that the model was trained with; its mean, std and channel order are used.
        dataset (`torch.utils.data.Dataset`): Items with uint8 RGB `pixel_values` (3, H, W) and `labels` (H, W).
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where the model runs.
        num_workers (`int`, *optional*, defaults to `0`): Processes that read images.

    Yields:
        `tuple[Tensor, Tensor, Tensor]`: uint8 image (3, H, W), labels (H, W) and predicted classes (H, W).
    """
    model = model.to(device).eval()
    normalization = InputNormalization.from_processor(processor).to(device)
    align_corners = upsamples_with_align_corners(model.config)
    for batch in DataLoader(dataset, batch_size=1, num_workers=num_workers, collate_fn=collate):
        pixel_values, labels = batch["pixel_values"].to(device), batch["labels"].to(device)
        logits = model(pixel_values=normalization(pixel_values)).logits
        yield batch["pixel_values"][0], labels[0], upsampled_argmax(logits, labels.shape[-2:], align_corners)[0]


def evaluate_model(
    model: PreTrainedModel,
    processor,
    dataset: Dataset,
    ignore_index: int = 255,
    device: str | torch.device = "cpu",
    num_workers: int = 0,
) -> dict:
    """Score `model` on `dataset`: whole images, single scale, predictions at the labels' size.

    Args are those of [`predictions`], plus `ignore_index`, the label value that is not scored.

    Returns:
        `dict`: The keys of [`~hf_segkd.metrics.MeanIoU`], which reads its scores off the same confusion matrix.
    """
    num_labels = model.config.num_labels
    matrix = torch.zeros(num_labels, num_labels, dtype=torch.int64)
    for _, labels, predicted in predictions(model, processor, dataset, device, num_workers):
        matrix += confusion_matrix(predicted, labels, num_labels, ignore_index).cpu()
    return scores(matrix)
