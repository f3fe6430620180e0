"""Pictures and masks as users have them."""

from pathlib import Path

import datasets
import numpy as np
from PIL import Image

NAMES = ["background", "crack", "rust"]
COLUMNS = {"image_column": "photo", "label_column": "mask"}


def picture(index: int, size=(40, 32)) -> Image.Image:
    pixels = np.random.default_rng(index).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ids(index: int, size=(40, 32)) -> np.ndarray:
    """Three stripes of classes 0, 1, 2, shifted by `index`, and one pixel without a label."""
    labels = np.broadcast_to((np.arange(size[0]) // 5 + index) % 3, size[::-1]).astype(np.uint8)
    labels[0, 0] = 255
    return labels


def save(path: Path, image: Image.Image | np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)


def write_photos(root: Path) -> Path:
    """Ten images with masks, one of them in a subfolder, and two without."""
    for index in range(12):
        stem = f"site/{index}" if index == 3 else f"{index}"
        save(root / "images" / f"{stem}.jpg", picture(index))
        if index < 10:
            save(root / "masks" / f"{stem}.png", ids(index))
    return root


def write_splits(root: Path) -> Path:
    """Eight images to train on and four to validate on, with nothing wrong."""
    for split, indices in (("train", range(8)), ("val", range(8, 12))):
        for index in indices:
            save(root / "images" / split / f"{split}_{index}.png", picture(index, (80, 64)))
            save(root / "masks" / split / f"{split}_{index}.png", ids(index, (80, 64)))
    return root


def cut_off(path: Path) -> None:
    """Leave half of a file, as an interrupted download does."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def table(count: int = 6, **features) -> datasets.Dataset:
    columns = {"photo": datasets.Image(), "mask": datasets.Image(), **features}
    rows = [{"photo": picture(index), "mask": Image.fromarray(ids(index))} for index in range(count)]
    return datasets.Dataset.from_list(
        [row | {name: [0, 1] for name in features} for row in rows], features=datasets.Features(columns)
    )
