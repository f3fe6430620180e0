"""Label Studio: one JSON file of tasks, with brushes, polygons, rectangles and ellipses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from PIL import Image, ImageDraw

from dataset_builders.formats.reading import ImageIndex, read_json, split_of
from dataset_builders.formats.shapes import Export, LabeledImage, Shape, inside_polygons, placed_bitmap

KINDS = ("brushlabels", "polygonlabels", "rectanglelabels", "ellipselabels")


def is_label_studio(folder: Path) -> bool:
    """Whether a folder holds a JSON list of tasks with `data` and `annotations`."""
    return bool(_files(folder))


def read_label_studio(folder: Path) -> Export:
    """Read tasks; of several annotations of one task the newest that was not canceled counts.

    Regions are drawn in the order of the result list. Class names are in the order in which they first appear.

    Raises:
        ValueError: A picture is missing.
    """
    pictures = ImageIndex(folder)
    splits: dict[str, list[LabeledImage]] = {}
    for file, tasks in _files(folder).items():
        for task in tasks:
            address = next(value for value in task["data"].values() if isinstance(value, str))
            picture = _find(pictures, address, file)
            annotations = [x for x in task["annotations"] if not x.get("was_cancelled")]
            shapes: tuple[Shape, ...] = ()
            if annotations:
                newest = max(annotations, key=lambda x: x.get("updated_at") or x.get("created_at") or "")
                shapes = tuple(shape for region in newest["result"] for shape in _shapes(region))
            split = split_of(picture, folder)
            splits.setdefault(split, []).append(LabeledImage(picture, shapes, reviewed=bool(annotations)))
    labels = dict.fromkeys(shape.label for items in splits.values() for item in items for shape in item.shapes)
    return Export("label_studio", tuple(labels), splits)


def _files(folder: Path) -> dict[Path, list[dict]]:
    found = {}
    for file in sorted(folder.rglob("*.json")):
        content = read_json(file)
        if isinstance(content, list) and content and all(isinstance(task, dict) for task in content):
            if all({"data", "annotations"} <= task.keys() for task in content):
                found[file] = content
    return found


def _find(pictures: ImageIndex, address: str, file: Path) -> Path:
    name = unquote(address.split("?d=")[-1])
    try:
        return pictures.find(name, file)
    except ValueError:
        # An upload is stored as 1a2b3c4d-name.jpg.
        head, dash, rest = Path(name).name.partition("-")
        if not dash or len(head) != 8:
            raise
        return pictures.find(rest, file)


def _shapes(region: dict):
    kind = region["type"]
    if kind not in KINDS:
        return
    for label in region["value"].get(kind, ()):
        yield Shape(label, _draw(region, kind))


def _draw(region: dict, kind: str) -> Callable[[tuple[int, int]], np.ndarray]:
    value = region["value"]
    if kind == "brushlabels":
        size = region["original_height"], region["original_width"]
        return placed_bitmap(decode_brush(value["rle"], size))

    def draw(size: tuple[int, int]) -> np.ndarray:
        height, width = size
        if kind == "polygonlabels":
            corners = [(x * width / 100, y * height / 100) for x, y in value["points"]]
            return inside_polygons([[number for corner in corners for number in corner]])(size)
        x, y = value["x"] * width / 100, value["y"] * height / 100
        if kind == "rectanglelabels":
            right, bottom = x + value["width"] * width / 100, y + value["height"] * height / 100
            return inside_polygons([[x, y, right, y, right, bottom, x, bottom]])(size)
        radius_x, radius_y = value["radiusX"] * width / 100, value["radiusY"] * height / 100
        canvas = Image.new("1", (width, height))
        ImageDraw.Draw(canvas).ellipse((x - radius_x, y - radius_y, x + radius_x, y + radius_y), fill=1)
        return np.array(canvas)

    return draw


def decode_brush(packed: list[int], size: tuple[int, int]) -> np.ndarray:
    """Unpack a brush: run lengths of the bytes of an RGBA picture whose alpha says where the brush went.

    The stream of bits holds the number of bytes (32 bits), the width of a byte less one (5), and four widths of
    lengths less one (4 each). Then come runs: whether all bytes are equal (1), which of the four widths the length
    has (2), the length less one, and the byte, or as many bytes as the length says.

    Args:
        packed (`list[int]`): The stream, 8 bits a number.
        size (`tuple[int, int]`): Height and width of the picture.

    Returns:
        `np.ndarray`: bool (H, W).
    """
    bits = "".join(f"{byte:08b}" for byte in packed)
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total = take(32)
    word = take(5) + 1
    widths = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        repeated = take(1)
        length = take(widths[take(2)]) + 1
        values += [take(word)] * length if repeated else [take(word) for _ in range(length)]
    return np.array(values, dtype=np.uint8).reshape(*size, 4)[..., 3] > 0
