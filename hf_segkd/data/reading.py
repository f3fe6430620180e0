"""From a dataset's row to tensors, decoding no more than is needed."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor

from hf_segkd.data.pixels import needs_bands, stored_pixels
from hf_segkd.data.raw import orientation, upright_size

if TYPE_CHECKING:
    from hf_segkd.models.bands import Bands


class StoredImage:
    """An encoded image of known size, decoded from the top as far down as a crop needs it.

    Half of a PNG takes half of the time. Other formats, and PNGs that are interlaced or turned, are decoded whole.

    Args:
        stored (`dict`): Value of a `datasets.Image(decode=False)` column: `bytes`, or `path` of a file.

    Raises:
        `ValueError`: If the picture holds more than 8-bit RGB.
    """

    def __init__(self, stored: dict[str, Any]):
        self._picture = PIL.Image.open(stored["path"] if stored["bytes"] is None else io.BytesIO(stored["bytes"]))
        _check_bytes(self._picture)
        self.shape = (3, *upright_size(self._picture))

    def rows(self, stop: int) -> Tensor:
        """The first `stop` rows, uint8 (3, stop, W) in RGB; to be called once."""
        with self._picture as picture:
            before = orientation(picture)
            if picture.format == "PNG" and before == 1 and not picture.info.get("interlace"):
                # Pillow's decoder ends with the last row of its tile.
                picture.tile = [tile._replace(extents=(0, 0, picture.width, stop)) for tile in picture.tile]
            picture.load()
            if orientation(picture) != before:
                raise ValueError("A PNG file turns itself by EXIF after its pixels. Save it again.")
            picture = PIL.ImageOps.exif_transpose(picture)
            return image_tensor(picture.crop((0, 0, picture.width, stop)))


def image_tensor(image: PIL.Image.Image) -> Tensor:
    """Pixels as uint8 (3, H, W) in RGB; not to be written to.

    Raises:
        `ValueError`: If the picture holds more than 8-bit RGB.
    """
    _check_bytes(image)
    # Without a copy: convert() makes one of RGB images too, and from_numpy wants writable memory.
    array = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return torch.from_dlpack(array).permute(2, 0, 1)


def _check_bytes(picture: PIL.Image.Image) -> None:
    if reason := needs_bands(picture):
        raise ValueError(f"An image {reason}.")


def pixel_tensor(array: np.ndarray) -> Tensor:
    """Values (C, H, W) of an image (H, W, C): bytes as they are, others as float32, which holds 16 bits exactly."""
    array = array if array.dtype == np.uint8 else array.astype(np.float32)
    return torch.from_numpy(np.require(array, requirements="W")).permute(2, 0, 1)


def read_example(example: dict[str, Any], bands: Bands | None = None) -> dict[str, Any]:
    """Read one row: `image` uint8 (3, H, W) in RGB, `annotation` integer (H, W), palette PNGs as indices.

    An image that is still encoded becomes a [`StoredImage`]; rows of tensors (from a decoded cache) stay as they are.
    With `bands`, the image is [`pixel_tensor`] of what is stored.

    Raises:
        `ValueError`: If the annotation is a color picture, its size differs from the image's, or the image does not
            hold what it should.
    """
    if isinstance(example["image"], Tensor | StoredImage):
        return example
    image_id = example["image_id"]
    annotation = np.array(example["annotation"])  # never convert("L"): it turns palette indices into gray levels
    if annotation.ndim != 2 or annotation.dtype.kind not in "bui":
        raise ValueError(
            f"The annotation of image '{image_id}' has shape {annotation.shape} and type {annotation.dtype}, expected "
            "one integer class id per pixel (H, W). Convert color masks to class ids in the dataset builder."
        )
    if annotation.dtype != np.uint8:
        annotation = annotation.astype(np.int64)
    if bands is not None:
        image = pixel_tensor(stored_pixels(example["image"], bands, image_id))
    elif isinstance(example["image"], dict):
        image = StoredImage(example["image"])
    else:
        image = image_tensor(example["image"])
    height, width = image.shape[1:]
    if (height, width) != annotation.shape:
        raise ValueError(
            f"Image '{image_id}' is {height} x {width} pixels (height x width), its annotation "
            f"{annotation.shape[0]} x {annotation.shape[1]}. Pair each image with its own annotation, at its own size."
        )
    return {"image": image, "annotation": torch.from_numpy(annotation), "image_id": image_id}
