"""The full ADE20K release: three-channel PNG files whose red and green say the class, and a JSON file of names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from dataset_builders.formats.reading import ImageIndex, read_json, split_of
from dataset_builders.formats.shapes import Export, LabeledImage, Shape

ENDING = "_seg.png"


def is_ade20k_full(folder: Path) -> bool:
    """Whether a folder holds files `NAME_seg.png` beside `NAME.json` with the names of the objects."""
    return any(file.with_name(file.name.removesuffix(ENDING) + ".json").is_file() for file in _masks(folder))


def read_ade20k_full(folder: Path) -> Export:
    """Read `NAME_seg.png`: the class is `red // 10 * 256 + green`, 0 is unlabeled; blue numbers the instances.

    Files of parts (`_parts_1.png`) are left out. Classes are sorted by their number.

    Raises:
        ValueError: A mask without its JSON file, whose names are needed.
    """
    pictures = ImageIndex(folder)
    splits: dict[str, list[LabeledImage]] = {}
    names: dict[int, str] = {}
    for file in _masks(folder):
        name = file.name.removesuffix(ENDING)
        description = file.with_name(f"{name}.json")
        if not description.is_file():
            raise ValueError(f"{file} has no {description.name} beside it, which holds the names of its classes.")
        objects = read_json(description)["annotation"]["object"]
        here = {int(entry["name_ndx"]): entry["name"] for entry in objects if entry["parts"]["part_level"] == 0}
        names |= here
        shapes = tuple(Shape(label, _class_of(file, number)) for number, label in here.items())
        picture = pictures.find(f"{name}.jpg", file)
        splits.setdefault(split_of(file, folder), []).append(LabeledImage(picture, shapes))
    return Export("ade20k_full", tuple(dict.fromkeys(names[key] for key in sorted(names))), splits)


def _masks(folder: Path) -> list[Path]:
    return sorted(folder.rglob(f"*{ENDING}"))


def _class_of(file: Path, number: int) -> Callable[[tuple[int, int]], np.ndarray]:
    def draw(size: tuple[int, int]) -> np.ndarray:
        with Image.open(file) as picture:
            red, green, _ = np.moveaxis(np.asarray(picture.convert("RGB"), dtype=np.int64), 2, 0)
        return red // 10 * 256 + green == number

    return draw
