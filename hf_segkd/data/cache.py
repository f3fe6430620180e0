"""Decoded images and labels on disk, read through the page cache instead of being decoded at every access."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from huggingface_hub.utils import WeakFileLock
from torch import Tensor

from hf_segkd.data.parallel import in_threads
from hf_segkd.data.reading import read_example

logger = logging.getLogger(__name__)

VERSION = "v1"  # of the files' layout
IMAGES, LABELS, INDEX = "images.bin", "labels.bin", "index.json"
CHANNELS = {IMAGES: 3, LABELS: 1}  # bytes per pixel


class DecodedRows:
    """Rows of tensors out of a folder that [`decoded`] wrote: `image` uint8 (3, H, W), `annotation` uint8 (H, W).

    The files are mapped into memory, privately: only the pages that a crop touches are read, all workers share them,
    and nothing that is done to a tensor reaches the disk. Images may differ in size.

    Args:
        folder (`str` or `pathlib.Path`): Written by [`decoded`].

    Raises:
        `ValueError`: If a file has not the size that the index says.
    """

    column_names = ("image", "annotation", "image_id")

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
        self.sizes, self.image_ids = index["sizes"], index["image_ids"]
        self.ends = np.cumsum([height * width for height, width in self.sizes])
        for name, channels in CHANNELS.items():
            expected, found = channels * int(self.ends[-1]), (self.folder / name).stat().st_size
            if found != expected:
                raise ValueError(f"{self.folder / name} has {found} bytes, expected {expected}. Delete {self.folder}.")
        self._map()

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        height, width = self.sizes[index]
        end = int(self.ends[index])
        start = end - height * width
        image = self._images[3 * start : 3 * end].reshape(height, width, 3).transpose(2, 0, 1)
        annotation = self._labels[start:end].reshape(height, width)
        tensors = {"image": torch.from_numpy(image), "annotation": torch.from_numpy(annotation)}
        return tensors | {"image_id": self.image_ids[index]}

    def __getstate__(self) -> dict:
        # A spawned worker maps the files itself; pickled, an array would be a copy of the whole dataset.
        return {name: value for name, value in vars(self).items() if name not in ("_images", "_labels")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._map()

    def _map(self) -> None:
        # Copy-on-write: torch wants writable memory, and the file must stay as it is.
        self._images, self._labels = (np.memmap(self.folder / name, np.uint8, mode="c") for name in CHANNELS)


def decoded(rows: datasets.Dataset, cache_dir: str | Path) -> DecodedRows:
    """Decode all rows once into a folder below `cache_dir`, or find them there.

    The folder is named after the rows' fingerprint, which changes with files, classes and label map. It appears
    whole: an interrupted preparation starts again. Several processes may ask at once; one of them writes.

    Args:
        rows (`datasets.Dataset`): Columns `image`, `annotation`, `image_id`; a split of
            [`~dataset_builders.open_dataset`].
        cache_dir (`str` or `pathlib.Path`): Folder on a fast local disk; made when it does not exist.

    Returns:
        `DecodedRows`: The same rows as tensors, 4 bytes per pixel on disk.

    Raises:
        `ValueError`: If they would not fit on the disk, or an annotation is unusable or holds values above 255.
    """
    folder = Path(cache_dir) / f"{rows._fingerprint}-{VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(f"{folder}.lock"):
        if not folder.is_dir():
            _prepare(rows, folder)
    return DecodedRows(folder)


def decoded_size(rows: datasets.Dataset) -> int:
    """Bytes that the decoded rows take, from the headers of the images alone."""
    images = rows.with_format(None).select_columns("image").cast_column("image", datasets.Image(decode=False))

    def pixels(index: int) -> int:
        stored = images[index]["image"]
        source = stored["path"] if stored["bytes"] is None else io.BytesIO(stored["bytes"])
        with PIL.Image.open(source) as opened:
            return opened.width * opened.height

    return sum(CHANNELS.values()) * sum(in_threads(pixels, range(len(images)), "reading sizes"))


def _prepare(rows: datasets.Dataset, folder: Path) -> None:
    needed, free = decoded_size(rows), shutil.disk_usage(folder.parent).free
    size = f"{len(rows)} images need {needed / 2**30:.2f} GiB decoded, {folder.parent} has {free / 2**30:.2f} GiB free"
    if needed > free:
        raise ValueError(f"{size}. Give a cache_dir on a larger disk, or none.")
    logger.info("%s: writing %s", size, folder.name)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _write(rows, partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    os.replace(partial, folder)


def _write(rows: datasets.Dataset, folder: Path) -> None:
    sizes, image_ids = [], []
    with open(folder / IMAGES, "wb") as images, open(folder / LABELS, "wb") as labels:
        for example in in_threads(lambda index: read_example(rows[index]), range(len(rows)), "decoding"):
            images.write(example["image"].permute(1, 2, 0).contiguous().numpy().data)
            labels.write(_bytes(example["annotation"], example["image_id"]).numpy().data)
            sizes.append(list(example["annotation"].shape))
            image_ids.append(example["image_id"])
        for file in (images, labels):
            file.flush()
            os.fsync(file.fileno())
    (folder / INDEX).write_text(json.dumps({"sizes": sizes, "image_ids": image_ids}), encoding="utf-8")


def _bytes(annotation: Tensor, image_id: str) -> Tensor:
    if annotation.min() < 0 or annotation.max() > 255:
        values = f"{int(annotation.min())} to {int(annotation.max())}"
        raise ValueError(f"The annotation of image '{image_id}' holds {values}; the decoded cache keeps 0 to 255.")
    return annotation.to(torch.uint8)
