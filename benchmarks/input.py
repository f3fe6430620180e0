"""From a PNG of 1024x2048 to a training crop of 512x1024: ours beside the originals' order of operations.

    python benchmarks/input.py --output_dir OUT

The originals decode, scale the whole image, pad, crop and flip; that is written here afresh, in uint8 (their float
normalization of the whole image is left out, in their favor), with OpenCV where it is installed (`pip install
opencv-python-headless`), else with Pillow. Scenes are drawn; their files are about as large as those of Cityscapes.
Every scale of the recipe counts the same; ours and theirs take turns, one thread each, files in the page cache.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import PIL
import torch
from PIL import Image

from dataset_builders.street_scenes import draw_scene
from hf_segkd.data import SegmentationDataset, TrainTransform, decoded
from hf_segkd.data.transforms import read_example

try:
    import cv2
except ImportError:
    cv2 = None

SIZE, CROP = (1024, 2048), (512, 1024)


def write_pair(folder: Path, index: int) -> dict[str, str]:
    """A scene drawn at half the size and enlarged, and its labels."""
    image, labels = draw_scene("train", index, SIZE[0] // 2, SIZE[1] // 2, seed=0)
    image = np.asarray(Image.fromarray(image).resize(SIZE[::-1], Image.Resampling.BICUBIC))
    labels = labels.repeat(2, axis=0).repeat(2, axis=1)
    paths = {"image": str(folder / f"{index}.png"), "annotation": str(folder / f"{index}_labels.png")}
    Image.fromarray(image).save(paths["image"])
    Image.fromarray(labels).save(paths["annotation"])
    return paths | {"image_id": str(index)}


def whole_decode(pair: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels as the originals read them."""
    if cv2:
        return cv2.imread(pair["image"], cv2.IMREAD_COLOR), cv2.imread(pair["annotation"], cv2.IMREAD_GRAYSCALE)
    return np.array(Image.open(pair["image"])), np.array(Image.open(pair["annotation"]))


def whole_augment(image: np.ndarray, labels: np.ndarray, scale: float, random: np.random.Generator):
    """Scale everything, pad, crop, flip."""
    size = int(image.shape[1] * scale), int(image.shape[0] * scale)
    if cv2:
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
    else:
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        labels = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    missing = [max(0, crop - length) for crop, length in zip(CROP, labels.shape, strict=True)]
    if any(missing):
        below, right = (0, missing[0]), (0, missing[1])
        image, labels = np.pad(image, (below, right, (0, 0))), np.pad(labels, (below, right), constant_values=255)
    top, left = (random.integers(length - crop + 1) for crop, length in zip(CROP, labels.shape, strict=True))
    image = image[top : top + CROP[0], left : left + CROP[1]].transpose(2, 0, 1)
    labels = labels[top : top + CROP[0], left : left + CROP[1]]
    if random.random() < 0.5:
        image, labels = image[:, :, ::-1], labels[:, ::-1]
    return np.ascontiguousarray(image), labels.astype(np.int64)


def ways(pairs: list[dict], rows: datasets.Dataset, cached, index: int, scale) -> dict[str, Callable]:
    """What is timed, for one image at one scale; the decoded images of the first two are made here."""
    transform = TrainTransform(CROP, (float(scale), float(scale)))
    plain, cache = (SegmentationDataset(source, transform, num_labels=10) for source in (rows, cached))
    random, generator = np.random.default_rng(index), torch.Generator().manual_seed(index)
    arrays, tensors = whole_decode(pairs[index]), read_example(rows[index])
    return {
        "augment_theirs": lambda: whole_augment(*arrays, float(scale), random),
        "augment_ours": lambda: transform(tensors, generator),
        "whole_theirs": lambda: whole_augment(*whole_decode(pairs[index]), float(scale), random),
        "whole_ours": lambda: plain[index],
        "whole_ours_cached": lambda: cache[index],
    }


def measure(folder: Path, images: int, rounds: int) -> dict[str, float]:
    """Milliseconds per image: medians over the rounds, averaged over the scales."""
    pairs = [write_pair(folder, index) for index in range(images)]
    columns = {
        "image": datasets.Image(mode="RGB"),
        "annotation": datasets.Image(),
        "image_id": datasets.Value("string"),
    }
    rows = datasets.Dataset.from_list(pairs, features=datasets.Features(columns))
    cached, times = decoded(rows, folder / "cache"), {}
    scales = TrainTransform(CROP).scales
    for number, scale in enumerate(scales):
        timed = ways(pairs, rows, cached, number % images, scale)
        seconds = {name: [] for name in timed}
        for _ in range(rounds + 1):
            for name, way in timed.items():
                start = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - start)
        for name, values in seconds.items():  # without the first round, which pays for what is loaded once
            times.setdefault(name, []).append(1e3 * statistics.median(values[1:]))
    size = statistics.mean(Path(pair["image"]).stat().st_size for pair in pairs) / 1e6
    return {name: statistics.mean(values) for name, values in times.items()} | {"png_megabytes": size}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output_dir", help="folder for input.json")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    if cv2:
        cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.images, arguments.rounds)
    ratios = {
        "augmentation": found["augment_theirs"] / found["augment_ours"],
        "whole": found["whole_theirs"] / found["whole_ours"],
        "whole_with_cache": found["whole_theirs"] / found["whole_ours_cached"],
    }
    versions = {"python": platform.python_version(), "torch": torch.__version__, "pillow": PIL.__version__}
    versions["opencv"] = cv2.__version__ if cv2 else None
    print("theirs / ours: " + ", ".join(f"{name} {value:.2f}" for name, value in ratios.items()))
    settings = {"images": arguments.images, "rounds": arguments.rounds, "size": SIZE, "crop": CROP}
    result = {"settings": settings, "ratios": ratios, "milliseconds": found, "versions": versions}
    print(json.dumps(result, indent=2))
    if arguments.output_dir:
        path = Path(arguments.output_dir) / "input.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
