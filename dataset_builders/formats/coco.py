"""COCO: polygons and run lengths in one JSON file per split, or panoptic PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dataset_builders.formats.reading import image_index, read_json, split_of
from dataset_builders.formats.shapes import Export, LabeledImage, Shape, coco_tools, inside_polygons


def is_coco(folder: Path) -> bool:
    """Whether a folder holds COCO files: JSON mappings with `images` and `categories`."""
    return bool(_files(folder))


def read_coco(folder: Path) -> Export:
    """Read all COCO files of a folder: `annotations/instances_train2017.json`, `train/_annotations.coco.json`, ...

    Regions are drawn in the order of the file, crowds first, so that single objects lie on top of them.

    Raises:
        ValueError: Two files disagree on the categories, boxes without outlines, or a picture is missing.
    """
    splits: dict[str, list[LabeledImage]] = {}
    names: dict[int, str] = {}
    pictures = image_index(folder)
    for file, content in _files(folder).items():
        categories = {entry["id"]: entry["name"] for entry in content["categories"]}
        if any(names.get(key, name) != name for key, name in categories.items()):
            raise ValueError(f"{file} numbers the categories in another way than the other files of {folder}.")
        names |= categories
        panoptic = any("segments_info" in entry for entry in content["annotations"])
        read = _panoptic_items if panoptic else _instance_items
        splits.setdefault(split_of(file, folder), []).extend(read(file, content, categories, pictures))
    used = {shape.label for items in splits.values() for item in items for shape in item.shapes}
    # Roboflow lists the name of the project as category 0, a parent of all others that no region has.
    parents = {entry.get("supercategory") for content in _files(folder).values() for entry in content["categories"]}
    labels = [names[key] for key in sorted(names) if names[key] in used or names[key] not in parents]
    dropped = [names[key] for key in sorted(names) if names[key] not in labels]
    notes = tuple(f"category '{name}' is the parent of others and no region has it: left out" for name in dropped)
    return Export("coco", tuple(dict.fromkeys(labels)), splits, notes)


def _files(folder: Path) -> dict[Path, dict[str, Any]]:
    found = {}
    for file in sorted(folder.rglob("*.json")):
        if file.stat().st_size == 0:
            continue
        with file.open("rb") as start:
            head = start.read(64)
        if not head.lstrip(b"\xef\xbb\xbf \n\r\t").startswith(b"{"):
            continue
        content = read_json(file)
        if isinstance(content, dict) and {"images", "categories", "annotations"} <= content.keys():
            found[file] = content
    return found


def _instance_items(file: Path, content: dict, categories: dict[int, str], pictures: dict) -> list[LabeledImage]:
    regions: dict[int, list[dict]] = {}
    for annotation in content["annotations"]:
        regions.setdefault(annotation["image_id"], []).append(annotation)
    items = []
    for entry in content["images"]:
        annotations = sorted(regions.get(entry["id"], []), key=lambda x: not x.get("iscrowd", 0))
        shapes = [_instance(file, annotation, categories) for annotation in annotations]
        size = (entry["height"], entry["width"]) if "height" in entry else None
        items.append(LabeledImage(pictures.find(entry["file_name"], file), tuple(shapes), size))
    return items


def _instance(file: Path, annotation: dict, categories: dict[int, str]) -> Shape:
    segmentation = annotation.get("segmentation")
    if not segmentation:
        raise ValueError(
            f"{file}: annotation {annotation.get('id')} has a box and no outline. Semantic segmentation needs "
            "polygons or masks: export 'COCO Segmentation', not 'COCO detection'."
        )
    label = categories[annotation["category_id"]]
    if isinstance(segmentation, list):
        return Shape(label, inside_polygons(segmentation))
    return Shape(label, lambda size: _run_lengths(segmentation, size))


def _run_lengths(segmentation: dict, size: tuple[int, int]) -> np.ndarray:
    tools = coco_tools()
    counts = segmentation["counts"]
    if isinstance(counts, list):
        encoded = tools.frPyObjects(segmentation, *segmentation["size"])
    else:
        encoded = {"size": segmentation["size"], "counts": counts.encode()}
    return tools.decode(encoded).astype(bool)


def _panoptic_items(file: Path, content: dict, categories: dict[int, str], pictures: dict) -> list[LabeledImage]:
    annotations = {entry["image_id"]: entry for entry in content["annotations"]}
    items = []
    for entry in content["images"]:
        annotation = annotations.get(entry["id"])
        size = (entry["height"], entry["width"]) if "height" in entry else None
        shapes = []
        if annotation is not None:
            segments = pictures.find(annotation["file_name"], file, near=file.with_suffix(""))
            for segment in annotation["segments_info"]:
                shapes.append(_segment(segments, segment["id"], categories[segment["category_id"]]))
        picture = pictures.find(entry["file_name"], file, avoid=file.with_suffix(""))
        items.append(LabeledImage(picture, tuple(shapes), size, annotation is not None))
    return items


def _segment(file: Path, number: int, label: str) -> Shape:
    def draw(size: tuple[int, int]) -> np.ndarray:
        with Image.open(file) as picture:
            red, green, blue = np.moveaxis(np.asarray(picture.convert("RGB"), dtype=np.int64), 2, 0)
        return red + 256 * green + 65536 * blue == number

    return Shape(label, draw)
