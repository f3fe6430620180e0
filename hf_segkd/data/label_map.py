"""What the values, or colors, of a mask mean: from them to train ids."""

import io
from pathlib import Path

import numpy as np
import PIL.Image

from hf_segkd.data.pixels import needs_bands, refusal, size_and_turn
from hf_segkd.data.raw import (
    SMALLEST_SIDE,
    Unreadable,
    decode_mask,
    orientation,
    pack_colors,
    raw_values,
    turned_as,
    upright_size,
)

IGNORE_INDEX = 255
Color = tuple[int, int, int]
_REFUSED = -1


class LabelMap:
    """Turns an annotation as it was published into train ids (uint8), and refuses values that it does not know.

    `known` holds the raw values that have a meaning, in order, and `ignored` those of them that mean "not labeled";
    colors are numbers 0xRRGGBB there.

    Args:
        ids (`dict[int, int]` or `dict[tuple[int, int, int], int]`): Raw value (32 bits), or RGB color, to train id
            (0 to 254) or 255 (ignored).
        allowed (`str`): The known values in words, for messages.
        advice (`str`): What to do about others, for messages.
        asks_about_255 (`bool`, *optional*, defaults to `True`): Whether nobody has said yet what 255 means in masks
            of 0 and 255 alone.

    Raises:
        `ValueError`: If a raw value or train id is out of range.
    """

    def __init__(self, ids: dict[int, int] | dict[Color, int], allowed: str, advice: str, asks_about_255: bool = True):
        self.ids = ids
        self.allowed = allowed
        self.advice = advice
        self.asks_about_255 = asks_about_255
        self.colors = any(isinstance(value, tuple) for value in ids)
        keys = [int(pack_colors(np.array(key))) if self.colors else key for key in ids]
        lowest, top = (0, 2**24) if self.colors else (-(2**31), 2**31)
        for key, train_id in zip(keys, ids.values(), strict=True):
            if not lowest <= key < top or not 0 <= train_id <= IGNORE_INDEX:
                raise ValueError(f"Label map {key} -> {train_id}: values are {lowest} to {top - 1}, ids 0 to 255.")
        order = np.argsort(keys)
        self.known = np.array(keys)[order]
        self._ids = np.array(list(ids.values()))[order]
        self.ignored = self.known[self._ids == IGNORE_INDEX]
        self._table = np.full(256, _REFUSED, dtype=np.int16)
        for key, train_id in zip(keys, ids.values(), strict=True):
            if 0 <= key < 256 and not self.colors:
                self._table[key] = train_id

    def __call__(self, annotation: PIL.Image.Image | np.ndarray, name: str) -> np.ndarray:
        """Train ids uint8 (H, W) of an annotation; palette pictures count as indices, unless the map is of colors.

        Raises:
            `ValueError`: Names the annotation and its unknown values, or says that its kind is wrong.
        """
        raw = raw_values(annotation, self.colors)
        if raw.ndim == 2 and raw.dtype.kind == "f":
            raise ValueError(f"{name} holds fractions, expected one whole class id per pixel. {self.advice}")
        if raw.ndim != 2 or raw.dtype.kind not in "ui":
            wanted = "one color per pixel" if self.colors else "one class id per pixel"
            raise ValueError(f"{name} is a color picture, expected {wanted}. {self.advice}")
        if raw.dtype == np.uint8:
            ids = self._table[raw]
        else:
            place = np.searchsorted(self.known, raw).clip(max=len(self.known) - 1)
            ids = np.where(self.known[place] == raw, self._ids[place], _REFUSED)
        if (ids == _REFUSED).any():
            found = np.unique(raw[ids == _REFUSED])
            values = [f"#{value:06x}" if self.colors else int(value) for value in found[:10].tolist()]
            more = f" and {len(found) - 10} more" if len(found) > 10 else ""
            raise ValueError(f"{name} holds the values {values}{more}; allowed are {self.allowed}. {self.advice}")
        return ids.astype(np.uint8)

    def hides_an_object(self, found: set[int], num_labels: int) -> bool:
        """Whether masks of 0 and 255 alone would lose all pixels of 255, although there are classes to find."""
        background, object_ = self.ids.get(0), self.ids.get(255)
        hidden = object_ == IGNORE_INDEX != background
        return self.asks_about_255 and found == {0, 255} and num_labels > 1 and hidden


def encode_train_ids(
    image: Path | io.BytesIO,
    annotation: Path | io.BytesIO | None,
    label_map: LabelMap,
    names: tuple[str, str],
    turn: bool = False,
    bands: bool = False,
) -> bytes:
    """PNG of train ids, at the size of the image as it is shown, after its EXIF rotation.

    Args:
        image (`pathlib.Path` or `io.BytesIO`): Encoded picture; only its header is read.
        annotation (the same, *optional*): Encoded annotation; `None` gives ids that are all ignored.
        label_map (`LabelMap`): What its values mean.
        names (`tuple[str, str]`): Of the two files, for messages.
        turn (`bool`, *optional*, defaults to `False`): Whether the annotation was drawn on the stored pixels, so that
            it is turned as the image is.
        bands (`bool`, *optional*, defaults to `False`): Whether the image may hold anything, else 8-bit RGB only.

    Raises:
        `ValueError`: If a file cannot be read, the sizes differ, values are unknown, the image is a pixel thin, or it
            holds more than 8-bit RGB.
    """
    try:
        shape, turned = size_and_turn(_bytes(image)) if bands else _size_and_turn(image, names[0])
        if annotation is None:
            ids = np.full(shape, IGNORE_INDEX, dtype=np.uint8)
        else:
            mask = decode_mask(_bytes(annotation))
            ids = label_map(turned_as(mask, turned if turn else 1), names[1])
    except (OSError, Unreadable) as error:
        raise ValueError(f"Cannot read the pair {', '.join(names)}: {error}. Restore the files.") from error
    if min(shape) < SMALLEST_SIDE:
        raise ValueError(f"{names[0]} is {shape[1]} x {shape[0]} pixels: no photo. Remove it.")
    if ids.shape != shape:
        raise ValueError(f"{names[1]} has {ids.shape[1]} x {ids.shape[0]} pixels, its image {shape[1]} x {shape[0]}.")
    buffer = io.BytesIO()
    PIL.Image.fromarray(ids).save(buffer, format="PNG")
    return buffer.getvalue()


def _bytes(source: Path | io.BytesIO) -> bytes:
    return source.getvalue() if isinstance(source, io.BytesIO) else source.read_bytes()


def _size_and_turn(image: Path | io.BytesIO, name: str) -> tuple[tuple[int, int], int]:
    """The same as `size_and_turn` of an 8-bit picture, from its header."""
    try:
        with PIL.Image.open(image) as opened:
            if reason := needs_bands(opened):
                raise ValueError(f"{name} {reason}.")
            return upright_size(opened), orientation(opened)
    except PIL.UnidentifiedImageError:
        if reason := refusal(_bytes(image)):
            raise ValueError(f"{name} {reason}.") from None
        raise
