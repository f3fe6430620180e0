"""labelme: one JSON file beside each picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dataset_builders.formats.reading import ImageIndex, read_json, split_of
from dataset_builders.formats.shapes import Export, LabeledImage, Shape, filled_outline, placed_bitmap

# labelme's own names for "not labeled" and for what lies in no shape.
IGNORED, BACKGROUND = "__ignore__", "_background_"


def is_labelme(folder: Path) -> bool:
    """Whether a folder holds labelme files: JSON mappings with `shapes` and `imagePath`."""
    return bool(_files(folder))


def read_labelme(folder: Path) -> Export:
    """Read the JSON files of labelme; later shapes lie on top, as in its own window.

    Pictures without a JSON file have no labels. Class names are sorted, since labelme keeps no list of them.

    Raises:
        ValueError: A shape without area (point, line), or a picture is missing.
    """
    pictures = ImageIndex(folder)
    splits: dict[str, list[LabeledImage]] = {}
    labeled = set()
    for file, content in _files(folder).items():
        picture = pictures.find(content["imagePath"], file)
        labeled.add(picture)
        shapes = tuple(Shape(shape["label"], _draw(file, shape)) for shape in content["shapes"])
        size = (content["imageHeight"], content["imageWidth"]) if content.get("imageHeight") else None
        splits.setdefault(split_of(file, folder), []).append(LabeledImage(picture, shapes, size))
    for picture in pictures:
        if picture not in labeled:
            splits.setdefault(split_of(picture, folder), []).append(LabeledImage(picture, reviewed=False))
    labels = {shape.label for items in splits.values() for item in items for shape in item.shapes}
    return Export("labelme", tuple(sorted(labels - {IGNORED, BACKGROUND})), splits)


def _files(folder: Path) -> dict[Path, dict]:
    found = {}
    for file in sorted(folder.rglob("*.json")):
        content = read_json(file)
        if isinstance(content, dict) and {"shapes", "imagePath"} <= content.keys():
            found[file] = content
    return found


def _draw(file: Path, shape: dict) -> Callable[[tuple[int, int]], np.ndarray]:
    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    if kind == "polygon":
        return filled_outline(points)
    if kind == "rectangle":
        (left, top), (right, bottom) = points
        return filled_outline([(left, top), (right, top), (right, bottom), (left, bottom)])
    if kind == "circle":
        return _circle(points)
    if kind == "mask":
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as picture:
            bitmap = np.array(picture).astype(bool)
        return placed_bitmap(bitmap, *(round(value) for value in points[0]))
    raise ValueError(
        f"{file} has a shape of type '{kind}' for class '{shape['label']}', which has no area. Draw a polygon, "
        "rectangle, circle or mask instead, or delete it."
    )


def _circle(points: list) -> Callable[[tuple[int, int]], np.ndarray]:
    (x, y), (edge_x, edge_y) = points
    radius = ((edge_x - x) ** 2 + (edge_y - y) ** 2) ** 0.5

    def draw(size: tuple[int, int]) -> np.ndarray:
        canvas = Image.new("1", (size[1], size[0]))
        ImageDraw.Draw(canvas).ellipse((x - radius, y - radius, x + radius, y + radius), fill=1, outline=1)
        return np.array(canvas)

    return draw
