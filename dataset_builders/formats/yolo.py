"""YOLO segmentation: a text file of outlines for each picture, and `data.yaml` with the names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml

from dataset_builders.formats.reading import ImageIndex, split_of
from dataset_builders.formats.shapes import Export, LabeledImage, Shape, filled_outline


def is_yolo(folder: Path) -> bool:
    """Whether a folder holds a YAML file with `names` and text files under `labels`."""
    return _description(folder) is not None and any(_labels(folder))


def read_yolo(folder: Path) -> Export:
    """Read outlines (class, then x and y of each corner as fractions of width and height); later ones lie on top.

    A picture whose text file is empty or missing shows no class at all, as YOLO's own tools read it.

    Raises:
        ValueError: No names, a class without a name, or a box where an outline is needed.
    """
    names = _names(_description(folder))
    texts = {(split_of(file, folder), file.stem): file for file in _labels(folder)}
    splits: dict[str, list[LabeledImage]] = {}
    for picture in ImageIndex(folder):
        split = split_of(picture, folder)
        file = texts.get((split, picture.stem))
        shapes = tuple(_shapes(file, names)) if file else ()
        splits.setdefault(split, []).append(LabeledImage(picture, shapes))
    return Export("yolo", tuple(names[key] for key in sorted(names)), splits)


def _description(folder: Path) -> Path | None:
    for file in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
        if isinstance(content, dict) and "names" in content:
            return file
    return None


def _names(file: Path) -> dict[int, str]:
    names = yaml.safe_load(file.read_text(encoding="utf-8-sig"))["names"]
    pairs = enumerate(names) if isinstance(names, list) else names.items()
    return {int(key): str(name) for key, name in pairs}


def _labels(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*.txt")) if "labels" in file.relative_to(folder).parent.parts]


def _shapes(file: Path, names: dict[int, str]):
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            label, values = names[int(words[0])], [float(word) for word in words[1:]]
        except (ValueError, KeyError):
            raise ValueError(f"{file}, line {number}: '{words[0]}' is no class of data.yaml ({names}).") from None
        if len(values) < 6 or len(values) % 2:
            raise ValueError(
                f"{file}, line {number} has {len(values)} numbers: a box or no outline. Semantic segmentation needs "
                "at least three corners: export YOLO segmentation, not detection."
            )
        yield Shape(label, _scaled(values))


def _scaled(values: list[float]) -> Callable[[tuple[int, int]], np.ndarray]:
    def draw(size: tuple[int, int]) -> np.ndarray:
        height, width = size
        # YOLO's own tools cut the fractions off.
        corners = [(int(x * width), int(y * height)) for x, y in zip(values[::2], values[1::2], strict=True)]
        return filled_outline(corners)(size)

    return draw
