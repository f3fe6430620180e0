"""What the values, or colors, of a mask mean: from them to train ids."""

import io
from pathlib import Path

import numpy as np
import PIL.Image

from hf_segkd.data.raw import pack_colors, raw_values, upright_size

IGNORE_INDEX = 255
Color = tuple[int, int, int]
_REFUSED = -1


class LabelMap:
    """Turns an annotation as it was published into train ids (uint8), and refuses values that it does not know.

    `known` holds the raw values that have a meaning, in order, and `ignored` those of them that mean "not labeled";
    colors are numbers 0xRRGGBB there.

    Args:
        ids (`dict[int, int]` or `dict[tuple[int, int, int], int]`): Raw value (0 to 65535), or RGB color, to train
            id (0 to 254) or 255 (ignored).
        allowed (`str`): The known values in words, for messages.
        advice (`str`): What to do about others, for messages.

    Raises:
        `ValueError`: If a raw value or train id is out of range.
    """

    def __init__(self, ids: dict[int, int] | dict[Color, int], allowed: str, advice: str):
        self.ids, self.allowed, self.advice = ids, allowed, advice
        self.colors = any(isinstance(value, tuple) for value in ids)
        keys = [int(pack_colors(np.array(key))) if self.colors else key for key in ids]
        top = 2**24 if self.colors else 2**16
        for key, train_id in zip(keys, ids.values(), strict=True):
            if not 0 <= key < top or not 0 <= train_id <= IGNORE_INDEX:
                raise ValueError(f"Label map {key} -> {train_id}: raw values are 0 to {top - 1}, ids 0 to 255.")
        order = np.argsort(keys)
        self.known = np.array(keys)[order]
        self._ids = np.array(list(ids.values()))[order]
        self.ignored = self.known[self._ids == IGNORE_INDEX]
        self._table = np.full(256, _REFUSED, dtype=np.int16)
        for key, train_id in zip(keys, ids.values(), strict=True):
            if key < 256 and not self.colors:
                self._table[key] = train_id

    def __call__(self, annotation: PIL.Image.Image | np.ndarray, name: str) -> np.ndarray:
        """Train ids uint8 (H, W) of an annotation; palette pictures count as indices, unless the map is of colors.

        Raises:
            `ValueError`: Names the annotation and its unknown values, or says that its kind is wrong.
        """
        raw = raw_values(annotation, self.colors)
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
        return found == {0, 255} and num_labels > 1 and object_ == IGNORE_INDEX != background


def encode_train_ids(
    image: Path | io.BytesIO, annotation: Path | io.BytesIO | None, label_map: LabelMap, names: tuple[str, str]
) -> bytes:
    """PNG of train ids, at the size of the image as it is shown, after its EXIF rotation.

    Args:
        image (`pathlib.Path` or `io.BytesIO`): Encoded picture; only its header is read.
        annotation (the same, *optional*): Encoded annotation; `None` gives ids that are all ignored.
        label_map (`LabelMap`): What its values mean.
        names (`tuple[str, str]`): Of the two files, for messages.

    Raises:
        `ValueError`: If a file cannot be read, the sizes differ, or values are unknown.
    """
    try:
        with PIL.Image.open(image) as opened:
            shape = upright_size(opened)
        if annotation is None:
            ids = np.full(shape, IGNORE_INDEX, dtype=np.uint8)
        else:
            with PIL.Image.open(annotation) as opened:
                ids = label_map(opened, names[1])
    except OSError as error:
        raise ValueError(f"Cannot read the pair {', '.join(names)}: {error}. Restore the files.") from error
    if ids.shape != shape:
        raise ValueError(f"{names[1]} has {ids.shape[1]} x {ids.shape[0]} pixels, its image {shape[1]} x {shape[0]}.")
    buffer = io.BytesIO()
    PIL.Image.fromarray(ids).save(buffer, format="PNG")
    return buffer.getvalue()
