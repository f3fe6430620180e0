"""Small sets of images that are not 8-bit RGB, with masks of three classes."""

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from helpers.own_photos import NAMES
from helpers.tiny import TINY

FOUR = ["red", "green", "blue", "nir"]
THIRTEEN = ["coastal", "blue", "green", "red", *(f"edge_{index}" for index in range(5, 14))]
SIZE = 40, 48  # height and width, pixels


def labels(index: int) -> np.ndarray:
    """Stripes of classes 0, 1 and 2, shifted by `index`."""
    return np.broadcast_to((np.arange(SIZE[1]) // 6 + index) % 3, SIZE).astype(np.uint8)


def pixels(index: int, bands: int, dtype: str) -> np.ndarray:
    """Noise (H, W, C) around a level that tells the class: of 12 bits, or of 8."""
    top = 255 if dtype == "uint8" else 4095
    noise = np.random.default_rng(index).uniform(0, 0.3, (*SIZE, bands))
    return ((labels(index)[..., None] / 3 + noise) * top).round().astype(dtype)


def write_set(root: Path, bands: int, dtype: str = "uint16", suffix: str = "tif", count: int = 8) -> Path:
    """`images/train/N.SUFFIX`, `masks/train/N.png` and two to validate on, with `labels.txt`."""
    for index in range(count):
        split = "train" if index < count - 2 else "val"
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
        array = pixels(index, bands, dtype)
        path = root / "images" / split / f"{index}.{suffix}"
        if suffix == "npy":
            np.save(path, array)
        elif suffix == "tif":
            tifffile.imwrite(path, array, photometric="minisblack", planarconfig="contig")
        else:
            Image.fromarray(array[..., 0] if bands == 1 else array).save(path)
        Image.fromarray(labels(index)).save(root / "masks" / split / f"{index}.png")
    (root / "labels.txt").write_text("\n".join(NAMES))
    return root


def data_flags(root: Path, names: list[str]) -> list[str]:
    return ["--dataset", "folder", "--data_dir", str(root), "--bands", *names]


def training_flags(out: Path, student: str | None = None) -> list[str]:
    flags = ["--output_dir", str(out), "--crop_size", "32", "32", "--per_device_train_batch_size", "2", "--use_cpu"]
    flags += ["--max_steps", "2", "--eval_steps", "2", "--save_steps", "2", "--logging_steps", "1"]
    new = [f"--student.{name}={value}" for name, value in TINY.items()]
    return flags + (["--student", student] if student else new)
