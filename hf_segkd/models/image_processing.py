"""Image processor that knows a model's channel order and how its logits are upsampled."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from .bands import Bands
from .normalization import InputNormalization

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class SegmentationImageProcessor(BaseImageProcessor):
    """Prepare images and label maps for a segmentation model, and turn its logits into label maps.

    Order: resize · channel order · rescale · normalize. Plain torch: the result does not depend on torchvision.

    Args:
        do_rescale (`bool`, *optional*, defaults to `True`): Whether to multiply pixels by `rescale_factor`.
        rescale_factor (`float`, *optional*, defaults to `1/255`): Factor of the 0..255 pixels.
        do_normalize (`bool`, *optional*, defaults to `True`): Whether to subtract `image_mean`, divide by `image_std`.
        image_mean (`Sequence[float]`, *optional*): Three values in the channel order that the model sees, in units of
            the rescaled pixels; of each band where `bands` are given. Defaults to ImageNet's.
        image_std (`Sequence[float]`, *optional*): Same, > 0. Defaults to ImageNet's.
        do_flip_channel_order (`bool`, *optional*, defaults to `False`): Whether the model wants BGR.
        align_corners (`bool`, *optional*, defaults to `False`): How logits are upsampled, as in the model's config.
        size (`dict[str, int]`, *optional*): `{"height", "width"}` in pixels. `None` keeps each image's own size.
        bands (`Sequence[str]`, *optional*): Names of the channels of images that are not 8-bit RGB: they are arrays
            `(H, W, C)` then, their values as they are stored, and nothing is brought to another range.
        pixel_dtype (`str`, *optional*, defaults to `"uint8"`): Type of these values; another one is refused.
        pixel_range (`Sequence[float]`, *optional*): The values that a model of 8-bit pictures would see as 0 and 255.
            For the record; this processor does not read it.

    Raises:
        ValueError: Statistics that are not one value for each channel, a `std` not positive, a `size` without both
            keys, or bands that are no [`~hf_segkd.models.Bands`].
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        do_flip_channel_order: bool = False,
        align_corners: bool = False,
        size: dict[str, int] | None = None,
        bands: Sequence[str] | None = None,
        pixel_dtype: str = "uint8",
        pixel_range: Sequence[float] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if size is not None and set(size) != {"height", "width"}:
            raise ValueError(f"size must be None or have the keys 'height' and 'width', got {size}.")
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.do_flip_channel_order = do_flip_channel_order
        self.align_corners = align_corners
        self.size = size
        self.bands = None if bands is None else list(bands)
        self.pixel_dtype = pixel_dtype
        self.pixel_range = None if pixel_range is None else list(pixel_range)
        InputNormalization.from_processor(self)

    def preprocess(
        self, images: Any, segmentation_maps: Any = None, return_tensors: str | None = None
    ) -> BatchFeature:
        """Prepare one image or a list of them.

        Args:
            images (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of these): PIL images of any mode, uint8
                arrays `(H, W, 3)` or `(3, H, W)`. Where both readings fit, arrays are channels-last, tensors first.
                With `bands`, arrays `(H, W, C)` or tensors `(C, H, W)` of `pixel_dtype`; `(H, W)` for a single band.
            segmentation_maps (same types, *optional*): Class ids, `(H, W)` each; a palette image gives its indices.
                Resized by nearest neighbor only.
            return_tensors (`str`, *optional*): `"pt"` or `"np"` to stack the batch; `None` for lists of tensors.

        Returns:
            `BatchFeature`: `pixel_values`, float32 `(C, H, W)` each, and `labels`, int64 `(H, W)` each, with maps.

        Raises:
            ValueError: Images that are not RGB bytes, maps that do not fit their images, or unequal sizes to stack.
        """
        bands = Bands.of(self)
        if bands is None:
            images = [_to_image(image) for image in _to_list(images, single_ndim=3)]
        else:
            flat = not isinstance(images, list | tuple) and np.ndim(images) == 2
            images = [_to_bands(image, bands) for image in _to_list(images, single_ndim=2 if flat else 3)]
        normalization = InputNormalization.from_processor(self)
        data = {"pixel_values": [normalization(self._resize(image[None], "bilinear"))[0] for image in images]}
        if segmentation_maps is not None:
            maps = [_to_map(item) for item in _to_list(segmentation_maps, single_ndim=2)]
            _check_pairs([image.shape[-2:] for image in images], [item.shape for item in maps])
            data["labels"] = [self._resize(item[None, None], "nearest-exact")[0, 0].long() for item in maps]
        sizes = {tuple(image.shape[-2:]) for image in data["pixel_values"]}
        if return_tensors is not None and len(sizes) > 1:
            raise ValueError(
                f"Images of unequal sizes (height, width) cannot be stacked: {sorted(sizes)}. "
                "Give the processor a size, pass one image at a time, or leave return_tensors out."
            )
        if return_tensors is not None:  # transformers 4.57 does not stack tensors itself
            data = {name: torch.stack(values) for name, values in data.items()}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Tensor]:
        """Turn logits into label maps.

        Args:
            outputs (`SegmentationOutput`): What the model returned, or any output with `logits` `(B, K, h, w)`.
            target_sizes (`Sequence[tuple[int, int]]`, *optional*): Height and width wanted for each image, in pixels.
                Logits are upsampled bilinearly with the processor's `align_corners`; `None` keeps their size.

        Returns:
            `list[torch.Tensor]`: Class ids, int64 `(H, W)`, one per image.

        Raises:
            ValueError: Another number of sizes than of images.
        """
        logits = outputs.logits.float()
        if target_sizes is None:
            return list(logits.argmax(dim=1))
        if len(target_sizes) != len(logits):
            raise ValueError(f"Got {len(target_sizes)} target_sizes for {len(logits)} images: give one per image.")
        maps = []
        for scores, size in zip(logits, target_sizes, strict=True):
            size = (int(size[0]), int(size[1]))
            scores = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=self.align_corners)
            maps.append(scores[0].argmax(dim=0))
        return maps

    def _resize(self, pixels: Tensor, mode: str) -> Tensor:
        if self.size is None:
            return pixels
        size = (self.size["height"], self.size["width"])
        if mode == "bilinear":
            return F.interpolate(pixels, size=size, mode=mode, align_corners=False, antialias=True)
        return F.interpolate(pixels.float(), size=size, mode=mode)


def _to_list(items: Any, single_ndim: int) -> list:
    if isinstance(items, Image.Image):
        return [items]
    if isinstance(items, np.ndarray | Tensor):
        return [items] if items.ndim == single_ndim else list(items)
    return list(items)


def _to_image(image: Any) -> Tensor:
    """uint8 `(3, H, W)` RGB."""
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"A picture of mode {image.mode} holds more than 8 bits, which would be cut off.")
        image = np.array(image.convert("RGB"))
    channels_first = isinstance(image, Tensor)
    pixels = torch.as_tensor(image)
    if pixels.ndim != 3 or 3 not in (pixels.shape[0], pixels.shape[-1]) or pixels.dtype != torch.uint8:
        raise ValueError(
            "An image must be a PIL image or uint8 of shape (H, W, 3) or (3, H, W), "
            f"got {pixels.dtype} of shape {tuple(pixels.shape)}."
        )
    first, last = pixels.shape[0] == 3, pixels.shape[-1] == 3
    return pixels if first and (channels_first or not last) else pixels.permute(2, 0, 1)


def _to_bands(image: Any, bands: Bands) -> Tensor:
    """`(C, H, W)`: bytes as they are, other values as float32, which holds 16 bits exactly."""
    if isinstance(image, Tensor):
        image = image.movedim(0, -1).numpy() if image.ndim == 3 else image.numpy()
    array = np.asarray(image)
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[-1] != len(bands.names) or array.dtype != bands.dtype:
        raise ValueError(
            f"An image must be an array (H, W, {len(bands.names)}) of {bands.dtype}, the bands "
            f"{', '.join(bands.names)} as they are stored; got {array.dtype} of shape {array.shape}."
        )
    return torch.from_numpy(array if bands.dtype == "uint8" else array.astype(np.float32)).permute(2, 0, 1)


def _to_map(segmentation_map: Any) -> Tensor:
    # Never convert("L"): it would turn a palette's class ids into gray levels.
    if isinstance(segmentation_map, Image.Image):
        segmentation_map = np.array(segmentation_map)
    labels = torch.as_tensor(segmentation_map)
    if labels.ndim != 2 or labels.is_floating_point():
        raise ValueError(
            f"A segmentation map must hold integer class ids of shape (H, W), got {labels.dtype} of shape "
            f"{tuple(labels.shape)}. Color maps must be translated to class ids first."
        )
    return labels


def _check_pairs(images: list[torch.Size], maps: list[torch.Size]) -> None:
    if images != maps:
        raise ValueError(
            "Each image needs one segmentation map of its own size, "
            f"got images {[tuple(size) for size in images]} and maps {[tuple(size) for size in maps]}."
        )
