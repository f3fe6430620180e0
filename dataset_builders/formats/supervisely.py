"""Supervisely: `meta.json` with the classes, and for each dataset the folders `img` and `ann`."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from dataset_builders.formats.reading import ImageIndex, read_json, split_of
from dataset_builders.formats.shapes import Export, LabeledImage, Shape, filled_outline, placed_bitmap


def is_supervisely(folder: Path) -> bool:
    """Whether a folder holds a `meta.json` with `classes` and annotations in folders called `ann`."""
    return _meta(folder) is not None and any(folder.rglob("ann/*.json"))


def read_supervisely(folder: Path) -> Export:
    """Read polygons with their holes, bitmaps and rectangles; later objects lie on top.

    Raises:
        ValueError: A geometry without area, or a picture is missing.
    """
    labels = tuple(entry["title"] for entry in read_json(_meta(folder))["classes"])
    pictures = ImageIndex(folder)
    splits: dict[str, list[LabeledImage]] = {}
    for file in sorted(folder.rglob("ann/*.json")):
        content = read_json(file)
        picture = pictures.find(f"img/{file.stem}", file)
        shapes = tuple(Shape(entry["classTitle"], _draw(file, entry)) for entry in content["objects"])
        size = content["size"]["height"], content["size"]["width"]
        splits.setdefault(split_of(file, folder), []).append(LabeledImage(picture, shapes, size))
    return Export("supervisely", labels, splits)


def _meta(folder: Path) -> Path | None:
    for file in sorted(folder.rglob("meta.json")):
        content = read_json(file)
        if isinstance(content, dict) and "classes" in content:
            return file
    return None


def _draw(file: Path, entry: dict) -> Callable[[tuple[int, int]], np.ndarray]:
    kind = entry["geometryType"]
    if kind == "polygon":
        return filled_outline(entry["points"]["exterior"], entry["points"]["interior"])
    if kind == "rectangle":
        (left, top), (right, bottom) = entry["points"]["exterior"]
        return filled_outline([(left, top), (right, top), (right, bottom), (left, bottom)])
    if kind == "bitmap":
        return placed_bitmap(_bitmap(entry["bitmap"]["data"]), *entry["bitmap"]["origin"])
    raise ValueError(
        f"{file}: class '{entry['classTitle']}' has a {kind}, which has no area. Draw a polygon, rectangle or bitmap."
    )


def _bitmap(data: str) -> np.ndarray:
    """A PNG inside zlib inside base64; what is drawn is opaque, or not black where there is no transparency."""
    with Image.open(io.BytesIO(zlib.decompress(base64.b64decode(data)))) as picture:
        pixels = np.array(picture.convert("RGBA") if picture.mode in ("RGBA", "LA", "P") else picture.convert("L"))
    return pixels[..., 3] > 0 if pixels.ndim == 3 else pixels > 0
