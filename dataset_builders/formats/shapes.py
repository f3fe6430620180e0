"""Labeled regions of an image, as labeling tools export them, and how they become a mask of class ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

PYCOCOTOOLS = "Polygons and RLE of COCO files need pycocotools. Install it with: pip install hf-segkd[formats]"


@dataclass(frozen=True)
class Shape:
    """One labeled region.

    Args:
        label (`str`): Name of its class.
        draw (`Callable[[tuple[int, int]], np.ndarray]`): From the height and width of the image, in pixels, to a bool
            array (H, W) that is true inside.
    """

    label: str
    draw: Callable[[tuple[int, int]], np.ndarray]


@dataclass(frozen=True)
class LabeledImage:
    """An image file and its regions, in the order in which the tool draws them: later ones lie on top.

    Args:
        image (`Path`): File of the picture.
        shapes (`tuple[Shape, ...]`): Its regions; none where nothing was labeled in it.
        size (`tuple[int, int]`, *optional*): Height and width as the export states them, pixels.
        reviewed (`bool`, *optional*, defaults to `True`): Whether the export says anything about this image. One that
            it does not mention has no label at all; one that it mentions without regions is all background.
    """

    image: Path
    shapes: tuple[Shape, ...] = ()
    size: tuple[int, int] | None = None
    reviewed: bool = True


@dataclass(frozen=True)
class Export:
    """What a labeling tool exported.

    Args:
        format (`str`): Key of `FORMATS`.
        labels (`tuple[str, ...]`): Class names in the order of the export.
        splits (`dict[str, list[LabeledImage]]`): Images by split; `"train"` where the export has no splits.
        notes (`tuple[str, ...]`, *optional*): What a person should know about how the export was read.
    """

    format: str
    labels: tuple[str, ...]
    splits: dict[str, list[LabeledImage]]
    notes: tuple[str, ...] = field(default=())


def draw_mask(item: LabeledImage, ids: dict[str, int], fill: int) -> np.ndarray:
    """Draw all regions of an image.

    Args:
        item ([`LabeledImage`]): The image, whose file is opened for its size.
        ids (`dict[str, int]`): Class id of each label; labels that are not in it are left out.
        fill (`int`): Value of pixels in no region.

    Returns:
        `np.ndarray`: (H, W), uint8 where all values fit, else uint16.

    Raises:
        ValueError: The export states another size than the picture has.
    """
    with Image.open(item.image) as picture:
        size = picture.height, picture.width
    if item.size is not None and item.size != size:
        raise ValueError(
            f"{item.image} is {size[0]} x {size[1]} pixels (height x width), its annotation says {item.size[0]} x "
            f"{item.size[1]}. Export again, or put back the picture that was labeled."
        )
    largest = max([fill, *ids.values()])
    mask = np.full(size, fill, dtype=np.uint8 if largest < 256 else np.uint16)
    for shape in item.shapes:
        if shape.label in ids:
            mask[shape.draw(size)] = ids[shape.label]
    return mask


def filled_outline(
    outline: Sequence[Sequence[float]], holes: Sequence[Sequence[Sequence[float]]] = ()
) -> Callable[[tuple[int, int]], np.ndarray]:
    """Polygon whose corners are pixels and belong to it, as labelme, YOLO's and Supervisely's own tools fill it.

    Args:
        outline (`Sequence[Sequence[float]]`): Corners (x, y), pixels.
        holes (*optional*): Outlines of what is cut out.
    """

    def draw(size: tuple[int, int]) -> np.ndarray:
        canvas = Image.new("1", (size[1], size[0]))
        pen = ImageDraw.Draw(canvas)
        pen.polygon([tuple(point) for point in outline], fill=1, outline=1)
        for hole in holes:
            pen.polygon([tuple(point) for point in hole], fill=0, outline=0)
        return np.array(canvas)

    return draw


def inside_polygons(polygons: Sequence[Sequence[float]]) -> Callable[[tuple[int, int]], np.ndarray]:
    """Polygons that cover pixels by area, as COCO's own tools fill them.

    Args:
        polygons (`Sequence[Sequence[float]]`): Each as x0, y0, x1, y1, ...; a region may consist of several.
    """

    def draw(size: tuple[int, int]) -> np.ndarray:
        tools = coco_tools()
        return tools.decode(tools.merge(tools.frPyObjects(list(polygons), *size))).astype(bool)

    return draw


def placed_bitmap(bitmap: np.ndarray, left: int = 0, top: int = 0) -> Callable[[tuple[int, int]], np.ndarray]:
    """A bool array (h, w) whose first pixel lies at column `left`, row `top` of the image."""

    def draw(size: tuple[int, int]) -> np.ndarray:
        mask = np.zeros(size, dtype=bool)
        rows, columns = mask[top : top + bitmap.shape[0], left : left + bitmap.shape[1]].shape
        mask[top : top + rows, left : left + columns] = bitmap[:rows, :columns]
        return mask

    return draw


def coco_tools():
    """The module `pycocotools.mask`.

    Raises:
        ImportError: It is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImportError(PYCOCOTOOLS) from error
    return mask
