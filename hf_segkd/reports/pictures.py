"""Pictures: images of any bands, class ids as colors, overlays, comparisons side by side with a legend. No torch."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hf_segkd.reports.markdown import printable

Palette = Sequence[tuple[int, int, int]]

_CELL = 256  # width of one picture in a comparison, pixels
_GAP = 8
_FONT_SIZE = 14
_SHOWN = 2, 98  # percent of the pixels that are darker than black and white of a picture


def visible(image: np.ndarray, names: Sequence[str] = ()) -> Image.Image:
    """A picture of an image, for people: nothing is computed from it.

    Args:
        image (`np.ndarray`): Pixels (H, W, C). Without names they are 8-bit RGB, and shown as they are.
        names (`Sequence[str]`, *optional*): Its bands. Shown are red, green and blue where all are there, else the
            first three, else the first as gray; each stretched from its 2nd to its 98th percentile.
    """
    if not names:
        return Image.fromarray(image)
    shown = [names.index(color) for color in ("red", "green", "blue") if color in names]
    if len(shown) < 3:
        shown = range(3) if len(names) >= 3 else [0, 0, 0]
    channels = []
    for channel in (image[..., index].astype(np.float32) for index in shown):
        low, high = np.percentile(channel, _SHOWN)
        stretched = (channel - low) / max(high - low, np.finfo(np.float32).tiny)
        channels.append((255 * stretched).round().clip(0, 255).astype(np.uint8))
    return Image.fromarray(np.stack(channels, axis=-1))


def colorize(
    labels: np.ndarray | Image.Image, palette: Palette, ignore_color: tuple[int, int, int] = (0, 0, 0)
) -> Image.Image:
    """Paint a map of class ids.

    Args:
        labels (`np.ndarray` or `PIL.Image.Image`): Class ids (H, W); values without a color count as ignored.
        palette (`Sequence[tuple[int, int, int]]`): RGB color of each class, 0 to 255.
        ignore_color (`tuple[int, int, int]`, *optional*, defaults to `(0, 0, 0)`): Color of all other values.

    Returns:
        `PIL.Image.Image`: RGB, same size.
    """
    labels = _class_ids(labels)
    colors = np.array([*palette, ignore_color], dtype=np.uint8)
    known = (labels >= 0) & (labels < len(palette))
    return Image.fromarray(colors[np.where(known, labels, len(palette))])


def overlay(image: Image.Image, labels: np.ndarray | Image.Image, palette: Palette, alpha: float = 0.5) -> Image.Image:
    """Blend class colors over an image; pixels without a class stay as they are.

    Args:
        image (`PIL.Image.Image`): Picture of the same size as `labels`.
        labels (`np.ndarray` or `PIL.Image.Image`): Class ids (H, W).
        palette (`Sequence[tuple[int, int, int]]`): RGB color of each class, 0 to 255.
        alpha (`float`, *optional*, defaults to `0.5`): Share of the colors, 0 to 1.

    Raises:
        `ValueError`: If the sizes differ or `alpha` is out of range.
    """
    labels = _class_ids(labels)
    if image.size != labels.shape[::-1]:
        raise ValueError(
            f"The image has {image.size[0]} x {image.size[1]} pixels, the labels {labels.shape[1]} x "
            f"{labels.shape[0]}. Resize the labels (by nearest) or the logits to the image first."
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}.")
    image = image.convert("RGB")
    known = (labels >= 0) & (labels < len(palette))
    blended = Image.blend(image, colorize(labels, palette), alpha)
    return Image.fromarray(np.where(known[..., None], np.asarray(blended), np.asarray(image)))


def legend(labels: Sequence[str], palette: Palette, width: int = 2 * _CELL) -> Image.Image:
    """Class names beside their colors, in as many columns as `width` (pixels) allows."""
    font = ImageFont.load_default(_FONT_SIZE)
    labels = [printable(name) for name in labels]
    row = _FONT_SIZE + _GAP
    column = int(max(font.getlength(name) for name in labels)) + row + 2 * _GAP
    columns = max(1, (width - _GAP) // column)
    rows = -(-len(labels) // columns)
    canvas = Image.new("RGB", (max(width, column + _GAP), rows * row + _GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (name, color) in enumerate(zip(labels, palette, strict=True)):
        x, y = _GAP + index % columns * column, _GAP + index // columns * row
        draw.rectangle((x, y, x + _FONT_SIZE, y + _FONT_SIZE), fill=tuple(color), outline="black")
        draw.text((x + row, y + _FONT_SIZE / 2), name, fill="black", font=font, anchor="lm")
    return canvas


def side_by_side(
    rows: Sequence[dict[str, Image.Image]], labels: Sequence[str] = (), palette: Palette = ()
) -> Image.Image:
    """Comparison with one row per image and one titled column per key, the legend of the classes below.

    Args:
        rows (`Sequence[dict[str, PIL.Image.Image]]`): Title to picture, the same titles in every row.
        labels (`Sequence[str]`, *optional*): Class names for the legend; none without them.
        palette (`Sequence[tuple[int, int, int]]`, *optional*): RGB color of each class.

    Raises:
        `ValueError`: If there is no row, or rows differ in their titles.
    """
    if not rows or any(list(row) != list(rows[0]) for row in rows):
        raise ValueError(f"Every row needs the same titles, got {[list(row) for row in rows]}. Give at least one row.")
    font = ImageFont.load_default(_FONT_SIZE)
    cells = [[_to_cell(picture) for picture in row.values()] for row in rows]
    heights = [max(cell.height for cell in row) for row in cells]
    width = len(rows[0]) * (_CELL + _GAP) + _GAP
    header = _FONT_SIZE + 2 * _GAP
    key = legend(labels, palette, width) if labels else Image.new("RGB", (width, 0))
    canvas = Image.new("RGB", (max(width, key.width), header + sum(heights) + _GAP * len(rows) + key.height), "white")
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(rows[0]):
        draw.text((_GAP + column * (_CELL + _GAP) + _CELL / 2, header / 2), title, "black", font, anchor="mm")
    top = header
    for row, height in zip(cells, heights, strict=True):
        for column, cell in enumerate(row):
            canvas.paste(cell, (_GAP + column * (_CELL + _GAP), top))
        top += height + _GAP
    canvas.paste(key, (0, top))
    return canvas


def _class_ids(labels: np.ndarray | Image.Image) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "bui":
        raise ValueError(
            f"Expected integer class ids of shape (H, W), got shape {labels.shape} and type {labels.dtype}. "
            "Take the argmax over classes, and one image at a time."
        )
    return labels.astype(np.int64)


def _to_cell(picture: Image.Image) -> Image.Image:
    # Nearest when enlarging, so that class borders stay sharp and colors stay those of the legend.
    method = Image.Resampling.NEAREST if picture.width <= _CELL else Image.Resampling.BOX
    return picture.convert("RGB").resize((_CELL, max(1, round(picture.height * _CELL / picture.width))), method)
