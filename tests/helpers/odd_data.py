"""Small inputs of every kind that people have: noise as photos, stripes of three classes as masks."""

import json
import unicodedata
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from helpers.own_photos import NAMES, picture, save

SIZE = (48, 40)


def photo(index: int) -> Image.Image:
    return picture(index, SIZE)


def stripes(index: int) -> np.ndarray:
    """Stripes of classes 0, 1, 2 (H, W), shifted by `index`."""
    return np.broadcast_to((np.arange(SIZE[0]) // 6 + index) % 3, SIZE[::-1]).astype(np.uint8).copy()


def write_pairs(root: Path, count: int = 6, convert=lambda ids: ids, suffix: str = "png") -> Path:
    """`images/N.png` and `masks/N.SUFFIX`, whose class ids `convert` makes into what is stored."""
    for index in range(count):
        save(root / "images" / f"{index}.png", photo(index))
        stored = convert(stripes(index))
        path = root / "masks" / f"{index}.{suffix}"
        if suffix == "npy":
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, stored)
        else:
            save(path, stored)
    return root


def write_beside(root: Path) -> Path:
    """Roboflow's layout: masks beside the images of each split, and a table of the classes."""
    for index in range(10):
        split = "train" if index < 6 else "valid" if index < 8 else "test"
        save(root / split / f"{index}_jpg.rf.{index:08x}.jpg", photo(index))
        save(root / split / f"{index}_jpg.rf.{index:08x}_mask.png", stripes(index))
        (root / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, crack\n2, rust\n")
    return root


def write_mmseg(root: Path) -> Path:
    """`img_dir` and `ann_dir` with folders of splits."""
    for index in range(10):
        split = "train" if index < 7 else "val"
        save(root / "img_dir" / split / f"{index}.jpg", photo(index))
        save(root / "ann_dir" / split / f"{index}.png", stripes(index))
    return root


def write_voc(root: Path) -> Path:
    """Lists of splits, masks of indices with a palette, and photos that are in no list."""
    for index in range(7):
        save(root / "JPEGImages" / f"a b{index}.jpg", photo(index))
        if index < 5:
            mask = Image.fromarray(stripes(index))
            mask.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
            save(root / "SegmentationClass" / f"a b{index}.png", mask)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, indices in (("train", (0, 1, 2)), ("val", (3, 4)), ("trainval", range(5))):
        (lists / f"{split}.txt").write_text("".join(f"a b{index}\n" for index in indices))
    return root


def write_accents(root: Path) -> Path:
    """Images whose names were taken apart by macOS, masks whose names were not."""
    for index in range(4):
        name = f"Straße é{index}"
        save(root / "images" / (unicodedata.normalize("NFD", name) + ".jpg"), photo(index))
        save(root / "masks" / (unicodedata.normalize("NFC", name) + ".png"), stripes(index))
    return root


def write_turned(root: Path) -> Path:
    """Photos that EXIF turns by 180 degrees, masks drawn on their stored pixels."""
    exif = Image.Exif()
    exif[0x0112] = 3
    for index in range(4):
        save(root / "masks" / f"{index}.png", np.rot90(stripes(index), 2).copy())
        (root / "images").mkdir(exist_ok=True)
        photo(index).rotate(180).save(root / "images" / f"{index}.jpg", exif=exif)
    return root


def write_parquet(root: Path, names: dict | None = None, **columns) -> Path:
    """Eight rows as `datasets` stores them, other columns of class labels, and `id2label.json`."""
    root.mkdir(parents=True)
    features = {"image": datasets.Image(), "annotation": datasets.Image()}
    rows = {"image": [photo(i) for i in range(8)], "annotation": [Image.fromarray(stripes(i)) for i in range(8)]}
    for name, labels in columns.items():
        features[name] = datasets.ClassLabel(names=labels)
        rows[name] = [index % len(labels) for index in range(8)]
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    table.to_parquet(root / "train-00000-of-00001.parquet")
    (root / "id2label.json").write_text(json.dumps(names or dict(enumerate(NAMES))))
    return root
