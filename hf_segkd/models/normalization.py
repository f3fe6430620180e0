"""Normalization of images on the device, equal to that of an image processor."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.image_processing_utils import BaseImageProcessor

from .bands import RGB, Bands


class InputNormalization(nn.Module):
    """Turn images as they are stored into the float input of one model, on the device that holds them.

    `(pixels · rescale_factor − mean) / std`, per channel in the order that the model sees. Student and teacher each
    have their own, so that both read one batch. The state dict is empty.

    Args:
        rescale_factor (`float`, *optional*, defaults to `1.0`): Multiplies the pixels, usually `1/255`.
        mean (`Sequence[float]` or `float`, *optional*, defaults to `0.0`): Subtracted after rescaling.
        std (`Sequence[float]` or `float`, *optional*, defaults to `1.0`): Divides, > 0.
        flip_channel_order (`bool`, *optional*, defaults to `False`): Whether the model wants BGR.
        images ([`~hf_segkd.models.Bands`], *optional*): What the images hold; by default 8-bit RGB.
        reads ([`~hf_segkd.models.Bands`], *optional*): What the model reads of them, found by name. A model of 8-bit
            RGB gets the bands red, green and blue, `images.pixel_range` brought to 0..255 and cut off there.

    Returns:
        `torch.Tensor` of shape `(B, C, H, W)`: float32.

    Raises:
        ValueError: `rescale_factor` or `std` not positive, `mean` not finite, a `mean` or `std` without one value for
            each channel, images that lack what the model reads; in `forward`, an input of another type or number of
            channels: uint8 where bytes are stored, else float32.
    """

    def __init__(
        self,
        rescale_factor: float = 1.0,
        mean: Sequence[float] | float = 0.0,
        std: Sequence[float] | float = 1.0,
        flip_channel_order: bool = False,
        images: Bands | None = None,
        reads: Bands | None = None,
    ):
        super().__init__()
        if rescale_factor <= 0:
            raise ValueError(f"rescale_factor must be positive, got {rescale_factor}.")
        self.flip_channel_order = flip_channel_order
        self.channels = len(images.names) if images else 3
        self.dtype = torch.float32 if images and images.dtype != "uint8" else torch.uint8
        # Dividing by 255 rounds once; multiplying by a float32 1/255 rounds twice and misses the processors' values.
        self.register_buffer("divisor", torch.tensor(1 / rescale_factor, dtype=torch.float32), persistent=False)
        count = len(reads.names) if reads else 3
        self.register_buffer("mean", _per_channel("mean", mean, count), persistent=False)
        self.register_buffer("std", _per_channel("std", std, count), persistent=False)
        if not self.mean.isfinite().all():
            raise ValueError(f"mean must be finite, got {mean}.")
        if not (self.std > 0).all():
            raise ValueError(f"std must be positive, got {std}.")
        self.selected = None
        self.byte_range = None
        if images == reads:
            return
        self.selected = images.positions(reads.names if reads else RGB)
        if reads is None:
            self.byte_range = _byte_range(images)
        elif reads.dtype != images.dtype:
            raise ValueError(f"The model reads {reads}, the images hold {images}: store both the same way.")

    @classmethod
    def from_processor(cls, processor: BaseImageProcessor, images: Bands | None = None) -> "InputNormalization":
        """Read `do_rescale`, `rescale_factor`, `do_normalize`, `image_mean`, `image_std` and, where the processor has
        it, `do_flip_channel_order`. Resizing is not part of it: the data pipeline decides the size.

        `images` says what the images hold where that is not what the processor expects.
        """
        fields = processor.to_dict()
        reads = Bands.of(processor)
        options = {"flip_channel_order": bool(fields.get("do_flip_channel_order"))}
        if fields.get("do_rescale"):
            options["rescale_factor"] = fields["rescale_factor"]
        if fields.get("do_normalize"):
            options |= {"mean": fields["image_mean"], "std": fields["image_std"]}
        # A range serves models of other pictures: it is no reason to refuse these.
        same = reads and images and (reads.names, reads.dtype) == (images.names, images.dtype)
        return cls(**options, images=reads if same or images is None else images, reads=reads)

    def forward(self, pixel_values: Tensor, content: Tensor | None = None) -> Tensor:
        """Normalize; outside of `content`, (B, 4) with top, left, bottom and right in pixels, the result is 0.

        Padding is the mean itself then, which no byte can be.
        """
        if pixel_values.dtype != self.dtype or pixel_values.ndim != 4 or pixel_values.shape[1] != self.channels:
            kind = "uint8 RGB" if self.channels == 3 and self.dtype == torch.uint8 else str(self.dtype)
            raise ValueError(
                f"Images to normalize must be {kind} of shape (B, {self.channels}, H, W), "
                f"got {pixel_values.dtype} of shape {tuple(pixel_values.shape)}."
            )
        if self.selected is not None:
            pixel_values = pixel_values[:, self.selected]
        if self.byte_range is not None:
            low, high = self.byte_range
            pixel_values = ((pixel_values - low) * (255 / (high - low))).clamp(0, 255)
        if self.flip_channel_order:
            pixel_values = pixel_values.flip(1)
        normalized = (pixel_values / self.divisor - self.mean) / self.std
        if content is None:
            return normalized
        return normalized.masked_fill(~_inside(content, *pixel_values.shape[-2:]), 0)


def _byte_range(images: Bands) -> tuple[float, float] | None:
    """Stored values that become 0 and 255 for a model of 8-bit pictures; `None` where bytes stay what they are."""
    if images.pixel_range is None:
        raise ValueError(
            f"The images hold {images}, and a model of 8-bit pictures reads their bands {', '.join(RGB)}: nobody has "
            "said which values are black and white to it. Give --pixel_range DARKEST BRIGHTEST; what lies outside is "
            "cut off for that model alone. `hf-segkd prepare` prints the values that occur."
        )
    return None if images.dtype == "uint8" and images.pixel_range == (0.0, 255.0) else images.pixel_range


def _inside(content: Tensor, height: int, width: int) -> Tensor:
    """Mask (B, 1, H, W) of the rectangles top, left, bottom, right."""
    top, left, bottom, right = content.view(-1, 4, 1).unbind(dim=1)
    rows = torch.arange(height, device=content.device)
    columns = torch.arange(width, device=content.device)
    rows = (rows >= top) & (rows < bottom)
    columns = (columns >= left) & (columns < right)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _per_channel(name: str, values: Sequence[float] | float, count: int) -> Tensor:
    values = [values] * count if isinstance(values, int | float) else list(values)
    if len(values) != count:
        number = "three" if count == 3 else str(count)
        raise ValueError(f"{name} must have {number} values, one per channel, got {values}.")
    return torch.tensor(values, dtype=torch.float32).view(1, count, 1, 1)
