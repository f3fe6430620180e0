"""What the values, or colors, of a mask mean: from them to train ids."""

import io
from pathlib import Path

import numpy as np
import PIL.Image

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
) -> bytes:
    """PNG of train ids, at the size of the image as it is shown, after its EXIF rotation.

    Args:
        image (`pathlib.Path` or `io.BytesIO`): Encoded picture; only its header is read.
        annotation (the same, *optional*): Encoded annotation; `None` gives ids that are all ignored.
        label_map (`LabelMap`): What its values mean.
        names (`tuple[str, str]`): Of the two files, for messages.
        turn (`bool`, *optional*, defaults to `False`): Whether the annotation was drawn on the stored pixels, so that
            it is turned as the image is.

    Raises:
        `ValueError`: If a file cannot be read, the sizes differ, values are unknown, or the image is a pixel thin.
    """
    try:
        with PIL.Image.open(image) as opened:
            shape = upright_size(opened)
            turned = orientation(opened) if turn else 1
        if annotation is None:
            ids = np.full(shape, IGNORE_INDEX, dtype=np.uint8)
        else:
            content = annotation.getvalue() if isinstance(annotation, io.BytesIO) else annotation.read_bytes()
            ids = label_map(turned_as(decode_mask(content), turned), names[1])
    except (OSError, Unreadable) as error:
        raise ValueError(f"Cannot read the pair {', '.join(names)}: {error}. Restore the files.") from error
    if min(shape) < SMALLEST_SIDE:
        raise ValueError(f"{names[0]} is {shape[1]} x {shape[0]} pixels: no photo. Remove it.")
    if ids.shape != shape:
        raise ValueError(f"{names[1]} has {ids.shape[1]} x {ids.shape[0]} pixels, its image {shape[1]} x {shape[0]}.")
    buffer = io.BytesIO()
    PIL.Image.fromarray(ids).save(buffer, format="PNG")
    return buffer.getvalue()
