"""Images and masks as they are stored, decoded with nothing but Pillow."""

from __future__ import annotations

import io
from typing import Protocol

import numpy as np
import PIL.Image

from hf_segkd.data import heif

heif.register()  # here, because every process that reads files imports this
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # EXIF: these orientations exchange width and height
SMALLEST_SIDE = 2  # pixels; statistics over a single one are undefined
# What brings the stored pixels of each EXIF orientation upright.
_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


class RawSplit(Protocol):
    """A split that has not been decoded, of [`~dataset_builders.opened.OpenedDataset`]. Reading may raise OSError."""

    def __len__(self) -> int: ...

    def names(self, index: int) -> tuple[str, str]:
        """Files of image and mask, for messages."""

    def sizes(self) -> list[int | None]:
        """Bytes of each image, found without reading it; `None` where it is missing."""

    def unlabeled(self) -> int:
        """Number of images without a mask."""

    def read_image(self, index: int) -> bytes:
        """Encoded image."""

    def read_mask(self, index: int) -> bytes | np.ndarray | PIL.Image.Image | None:
        """Encoded mask, or its raw values; `None` is declared unlabeled."""


class Unreadable(Exception):
    """A file that cannot be read or decoded; the message says why."""


def read(source, index: int):
    """What `source(index)` returns.

    Raises:
        `Unreadable`: If it cannot be read.
    """
    try:
        return source(index)
    except (OSError, ValueError) as error:
        raise Unreadable(_first_line(error)) from None


def decode(content: bytes) -> PIL.Image.Image:
    """A picture, decoded to its last pixel.

    Raises:
        `Unreadable`: If it is cut off or no picture.
    """
    try:
        with PIL.Image.open(io.BytesIO(content)) as picture:
            picture.load()
            return picture
    # SyntaxError and EOFError: Pillow's words for damaged PNG and GIF files.
    except (OSError, ValueError, SyntaxError, EOFError, PIL.Image.DecompressionBombError) as error:
        raise Unreadable(_first_line(error)) from None


def decode_mask(content: bytes) -> PIL.Image.Image | np.ndarray:
    """A mask: a picture, or the array of a `.npy` file.

    Raises:
        `Unreadable`: If it is cut off or neither.
    """
    if not content.startswith(b"\x93NUMPY"):
        return decode(content)
    try:
        return np.load(io.BytesIO(content), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Unreadable(_first_line(error)) from None


def turned_as(mask: PIL.Image.Image | np.ndarray, turn: int) -> PIL.Image.Image | np.ndarray:
    """A mask that was drawn on the stored pixels of an image with EXIF orientation `turn`, upright."""
    if turn not in _TURNS:
        return mask
    picture = mask if isinstance(mask, PIL.Image.Image) else PIL.Image.fromarray(mask)
    return picture.transpose(_TURNS[turn])


def orientation(picture: PIL.Image.Image) -> int:
    """EXIF orientation, 1 is upright. Of a PNG that is not decoded yet, only what stands before the pixels counts."""
    if picture.format == "PNG" and "exif" not in picture.info:
        return 1  # getexif() would decode the whole picture to look behind it
    if picture.format == "TIFF":
        return 1  # Pillow turns them itself, and gives the upright size from the start
    return picture.getexif().get(ORIENTATION, 1)


def upright_size(picture: PIL.Image.Image) -> tuple[int, int]:
    """Height and width after the EXIF rotation, which `datasets` applies to images and to masks."""
    return picture.size if orientation(picture) in TURNED else picture.size[::-1]


def raw_values(mask: PIL.Image.Image | np.ndarray, colors: bool) -> np.ndarray:
    """Raw values (H, W) of a mask, palette pictures as indices; another shape or type if it holds something else."""
    if colors and isinstance(mask, PIL.Image.Image):
        mask = mask.convert("RGB")
    array = np.asarray(mask)
    if colors and array.shape[-1:] == (3,):
        return pack_colors(array)
    if array.ndim == 3:
        array = _single_channel(array)
    if array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.rint(array)).all():
        return array.astype(np.int64)
    return array.astype(np.uint8) if array.dtype == bool else array


def _single_channel(array: np.ndarray) -> np.ndarray:
    """One of several equal channels (H, W, C), transparency aside where all is opaque; else the array as it is."""
    channels = array.shape[-1]
    if channels in (2, 4) and (array[..., -1] == 255).all():
        array = array[..., :-1]
    if channels <= 4 and (array == array[..., :1]).all():
        return array[..., 0]
    return array


def distinct(raw: np.ndarray) -> np.ndarray:
    """Values that occur, in order."""
    if raw.dtype == np.uint8:
        return np.flatnonzero(np.bincount(raw.ravel(), minlength=256))
    return np.unique(raw)


def looks_mixed(raw: np.ndarray, unknown: np.ndarray) -> bool:
    """Whether unknown values are mixtures at borders, as JPEG and resizing leave them, rather than classes.

    Such values are many, and few of their pixels equal their left neighbor.
    """
    where, same = np.isin(raw, unknown)[:, 1:], raw[:, 1:] == raw[:, :-1]
    return unknown.size >= 8 and where.any() and same[where].mean() < 0.5


def pack_colors(colors: np.ndarray) -> np.ndarray:
    """Numbers 0xRRGGBB (...) of RGB colors (..., 3)."""
    red, green, blue = np.moveaxis(colors.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
