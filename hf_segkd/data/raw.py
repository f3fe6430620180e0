"""Images and masks as they are stored, decoded with nothing but Pillow."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import PIL.Image

ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # EXIF: these orientations exchange width and height


class RawSplit(Protocol):
    """A split that has not been decoded, from [`~dataset_builders.raw_splits`]. Reading may raise OSError."""

    def __len__(self) -> int: ...

    def names(self, index: int) -> tuple[str, str]:
        """Files of image and mask, for messages."""

    def sizes(self) -> list[int | None]:
        """Bytes of each image, found without reading it; `None` where it is missing."""

    def read_image(self, index: int) -> bytes:
        """Encoded image."""

    def read_mask(self, index: int) -> bytes | np.ndarray | None:
        """Encoded mask, or its raw values; `None` is declared unlabelled."""


class Unreadable(Exception):
    """A file that cannot be read or decoded; the message says why."""


@dataclass(frozen=True)
class LabelValues:
    """What the raw values of the masks stand for.

    Args:
        ids (`dict[int, int]` or `dict[tuple[int, int, int], int]`): Raw value, or RGB colour, to train id.
        ignore_index (`int`): The id that stands for "not labelled".
        num_labels (`int`): Number of classes K.
    """

    ids: dict[int, int] | dict[tuple[int, int, int], int]
    ignore_index: int
    num_labels: int

    @property
    def colors(self) -> bool:
        return any(isinstance(value, tuple) for value in self.ids)

    def known(self) -> np.ndarray:
        """Raw values that have a meaning; colours as 0xRRGGBB."""
        return np.array([_packed(np.array(value)) if self.colors else value for value in self.ids])

    def ignored(self) -> np.ndarray:
        """Those of them that stand for "not labelled"."""
        return self.known()[np.array(list(self.ids.values())) == self.ignore_index]

    def hides_an_object(self, found: set[int]) -> bool:
        """Whether masks of 0 and 255 alone would lose all pixels of 255, although there are classes to find."""
        means = self.ids.get(0), self.ids.get(255)
        return found == {0, 255} and self.num_labels > 1 and means[1] == self.ignore_index != means[0]


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


def orientation(picture: PIL.Image.Image) -> int:
    """EXIF orientation, 1 is upright. Of a PNG that is not decoded yet, only what stands before the pixels counts."""
    if picture.format == "PNG" and "exif" not in picture.info:
        return 1  # getexif() would decode the whole picture to look behind it
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
        return _packed(array)
    return array.astype(np.uint8) if array.dtype == bool else array


def distinct(raw: np.ndarray) -> np.ndarray:
    """Values that occur, in order."""
    if raw.dtype == np.uint8:
        return np.flatnonzero(np.bincount(raw.ravel(), minlength=256))
    return np.unique(raw)


def looks_mixed(raw: np.ndarray, unknown: np.ndarray) -> bool:
    """Whether unknown values are mixtures at borders, as JPEG and resizing leave them, rather than classes.

    Such values are many, and few of their pixels equal their left neighbour.
    """
    where, same = np.isin(raw, unknown)[:, 1:], raw[:, 1:] == raw[:, :-1]
    return unknown.size >= 8 and where.any() and same[where].mean() < 0.5


def _packed(colors: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(colors.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
