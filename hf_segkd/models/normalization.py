"""Normalization of uint8 images on the device, equal to that of an image processor."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.image_processing_utils import BaseImageProcessor


class InputNormalization(nn.Module):
    """Turn uint8 RGB images into the float input of one model, on the device that holds them.

    `(pixels · rescale_factor − mean) / std`, per channel in the order that the model sees. Student and teacher each
    have their own, so that both read one batch of bytes. The state dict is empty.

    Args:
        rescale_factor (`float`, *optional*, defaults to `1.0`): Multiplies the pixels, usually `1/255`.
        mean (`Sequence[float]` or `float`, *optional*, defaults to `0.0`): Subtracted after rescaling.
        std (`Sequence[float]` or `float`, *optional*, defaults to `1.0`): Divides, > 0.
        flip_channel_order (`bool`, *optional*, defaults to `False`): Whether the model wants BGR.

    Returns:
        `torch.Tensor` of shape `(B, 3, H, W)`: float32.

    Raises:
        ValueError: `rescale_factor` or `std` not positive, `mean` not finite, a `mean` or `std` without three values,
            or an input that is not uint8 with three channels.
    """

    def __init__(
        self,
        rescale_factor: float = 1.0,
        mean: Sequence[float] | float = 0.0,
        std: Sequence[float] | float = 1.0,
        flip_channel_order: bool = False,
    ):
        super().__init__()
        if rescale_factor <= 0:
            raise ValueError(f"rescale_factor must be positive, got {rescale_factor}.")
        self.flip_channel_order = flip_channel_order
        # Dividing by 255 rounds once; multiplying by a float32 1/255 rounds twice and misses the processors' values.
        self.register_buffer("divisor", torch.tensor(1 / rescale_factor, dtype=torch.float32), persistent=False)
        self.register_buffer("mean", _per_channel("mean", mean), persistent=False)
        self.register_buffer("std", _per_channel("std", std), persistent=False)
        if not self.mean.isfinite().all():
            raise ValueError(f"mean must be finite, got {mean}.")
        if not (self.std > 0).all():
            raise ValueError(f"std must be positive, got {std}.")

    @classmethod
    def from_processor(cls, processor: BaseImageProcessor) -> "InputNormalization":
        """Read `do_rescale`, `rescale_factor`, `do_normalize`, `image_mean`, `image_std` and, where the processor has
        it, `do_flip_channel_order`. Resizing is not part of it: the data pipeline decides the size."""
        fields = processor.to_dict()
        options = {"flip_channel_order": bool(fields.get("do_flip_channel_order"))}
        if fields.get("do_rescale"):
            options["rescale_factor"] = fields["rescale_factor"]
        if fields.get("do_normalize"):
            options |= {"mean": fields["image_mean"], "std": fields["image_std"]}
        return cls(**options)

    def forward(self, pixel_values: Tensor, content: Tensor | None = None) -> Tensor:
        """Normalize; outside of `content`, (B, 4) with top, left, bottom and right in pixels, the result is 0.

        Padding is the mean itself then, which no byte can be.
        """
        if pixel_values.dtype != torch.uint8 or pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
            raise ValueError(
                "Images to normalize must be uint8 RGB of shape (B, 3, H, W), "
                f"got {pixel_values.dtype} of shape {tuple(pixel_values.shape)}."
            )
        if self.flip_channel_order:
            pixel_values = pixel_values.flip(1)
        normalized = (pixel_values / self.divisor - self.mean) / self.std
        if content is None:
            return normalized
        return normalized.masked_fill(~_inside(content, *pixel_values.shape[-2:]), 0)


def _inside(content: Tensor, height: int, width: int) -> Tensor:
    """Mask (B, 1, H, W) of the rectangles top, left, bottom, right."""
    top, left, bottom, right = content.view(-1, 4, 1).unbind(dim=1)
    rows = torch.arange(height, device=content.device)
    columns = torch.arange(width, device=content.device)
    rows = (rows >= top) & (rows < bottom)
    columns = (columns >= left) & (columns < right)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _per_channel(name: str, values: Sequence[float] | float) -> Tensor:
    values = [values] * 3 if isinstance(values, int | float) else list(values)
    if len(values) != 3:
        raise ValueError(f"{name} must have three values, one per channel, got {values}.")
    return torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)
