"""What runs on devices: a model with everything around it, from the bytes of an image to class ids, as one module."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from hf_segkd.models import InputNormalization, upsamples_with_align_corners


class ImageToLogits(nn.Module):
    """From images (B, H, W, C) as they are stored to the model's logits (B, K, h, w), float32.

    8-bit RGB and other bands of bytes are uint8, all others float32.

    Args:
        model (`PreTrainedModel`): As [`~hf_segkd.loading.any_model.load_model`] returns it, float32 or float16.
        processor (`BaseImageProcessor`): The one it was trained with; its mean, std and channel order are used.
    """

    def __init__(self, model: PreTrainedModel, processor: BaseImageProcessor):
        super().__init__()
        self.model = model
        self.normalization = InputNormalization.from_processor(processor)

    def forward(self, images: Tensor) -> Tensor:
        pixel_values = self.normalization(images.permute(0, 3, 1, 2)).to(self.model.dtype)
        with AnySizePooling():
            return self.model(pixel_values=pixel_values).logits.float()


class ImageToLabels(ImageToLogits):
    """From images (B, H, W, C) as they are stored to class ids (B, H, W), uint8 up to 256 classes, else int32.

    Logits are upsampled bilinearly to the image with the model's own `align_corners`.
    """

    def forward(self, images: Tensor) -> Tensor:
        align_corners = upsamples_with_align_corners(self.model.config)
        logits = super().forward(images)
        logits = F.interpolate(logits, size=images.shape[1:3], mode="bilinear", align_corners=align_corners)
        return logits.argmax(dim=1).to(torch.uint8 if self.model.config.num_labels <= 256 else torch.int32)


OUTPUTS: dict[str, type[ImageToLogits]] = {"labels": ImageToLabels, "logits": ImageToLogits}


class AnySizePooling(TorchFunctionMode):
    """Adaptive average pooling as two matrix products.

    The exporter would write the cell borders of the example's size into the file, which is wrong at any other size.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not F.adaptive_avg_pool2d:
            return function(*args, **(kwargs or {}))
        x, size = args
        rows, columns = (size, size) if isinstance(size, int) else size
        if rows == columns == 1:
            return x.mean(dim=(-2, -1), keepdim=True)
        return _cells(x, x.shape[-2], rows) @ x @ _cells(x, x.shape[-1], columns).T


def _cells(x: Tensor, length: int, count: int) -> Tensor:
    """Weights (count, length) of the average over each cell, cell i from ⌊i·length/count⌋ to ⌈(i+1)·length/count⌉."""
    index = torch.arange(count, device=x.device)[:, None]
    position = torch.arange(length, device=x.device)
    inside = (position >= index * length // count) & (position < ((index + 1) * length + count - 1) // count)
    return (inside / inside.sum(dim=1, keepdim=True)).to(x.dtype)
