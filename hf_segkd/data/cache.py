"""Decoded images and labels on disk, read through the page cache instead of being decoded at every access."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import PIL.Image
import torch
from huggingface_hub.utils import WeakFileLock
from torch import Tensor

from hf_segkd.data.parallel import in_threads
from hf_segkd.data.pixels import stored_pixels
from hf_segkd.data.reading import pixel_tensor, read_example

if TYPE_CHECKING:
    from hf_segkd.models.bands import Bands

logger = logging.getLogger(__name__)

VERSION = "v1"  # of the files' layout
IMAGES, LABELS, INDEX = "images.bin", "labels.bin", "index.json"


class DecodedRows:
    """Rows of tensors out of a folder that [`decoded`] wrote: `image` uint8 (3, H, W), `annotation` uint8 (H, W).

    Bands lie on the disk in their own type and come as [`~hf_segkd.data.reading.pixel_tensor`].

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
        self.channels, self.dtype = index.get("channels", 3), index.get("dtype", "uint8")
        for name, size in _pixel_bytes(self.channels, self.dtype).items():
            expected, found = size * int(self.ends[-1]), (self.folder / name).stat().st_size
            if found != expected:
                raise ValueError(f"{self.folder / name} has {found} bytes, expected {expected}. Delete {self.folder}.")
        self._map()

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        height, width = self.sizes[index]
        end = int(self.ends[index])
        start = end - height * width
        image = self._images[self.channels * start : self.channels * end].reshape(height, width, self.channels)
        annotation = self._labels[start:end].reshape(height, width)
        tensors = {"image": pixel_tensor(image), "annotation": torch.from_numpy(annotation)}
        return tensors | {"image_id": self.image_ids[index]}

    def __getstate__(self) -> dict:
        # A spawned worker maps the files itself; pickled, an array would be a copy of the whole dataset.
        return {name: value for name, value in vars(self).items() if name not in ("_images", "_labels")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._map()

    def _map(self) -> None:
        # Copy-on-write: torch wants writable memory, and the file must stay as it is.
        self._images = np.memmap(self.folder / IMAGES, self.dtype, mode="c")
        self._labels = np.memmap(self.folder / LABELS, np.uint8, mode="c")


def decoded(rows: datasets.Dataset, cache_dir: str | Path, bands: Bands | None = None) -> DecodedRows:
    """Decode all rows once into a folder below `cache_dir`, or find them there.

    The folder is named after the rows' fingerprint, which changes with files, classes and label map. It appears
    whole: an interrupted preparation starts again. Several processes may ask at once; one of them writes.

    Args:
        rows (`datasets.Dataset`): Columns `image`, `annotation`, `image_id`; a split of
            [`~dataset_builders.open_dataset`].
        cache_dir (`str` or `pathlib.Path`): Folder on a fast local disk; made when it does not exist.
        bands ([`~hf_segkd.models.Bands`], *optional*): What images hold that are not 8-bit RGB.

    Returns:
        `DecodedRows`: The same rows as tensors, 4 bytes per pixel on disk, or as many as the bands take and 1.

    Raises:
        `ValueError`: If they would not fit on the disk, or an annotation is unusable or holds values above 255.
    """
    folder = Path(cache_dir) / f"{rows._fingerprint}-{VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(f"{folder}.lock"):
        if not folder.is_dir():
            _prepare(rows, folder, bands)
    return DecodedRows(folder)


def _pixel_bytes(channels: int, dtype: str) -> dict[str, int]:
    return {IMAGES: channels * np.dtype(dtype).itemsize, LABELS: 1}


def decoded_size(rows: datasets.Dataset, bands: Bands | None = None) -> int:
    """Size of the decoded rows in bytes, read from the image headers where possible."""
    images = rows.with_format(None).select_columns("image").cast_column("image", datasets.Image(decode=False))

    def pixels(index: int) -> int:
        stored = images[index]["image"]
        if bands is not None:
            return math.prod(stored_pixels(stored, bands, str(index)).shape[:2])
        source = stored["path"] if stored["bytes"] is None else io.BytesIO(stored["bytes"])
        with PIL.Image.open(source) as opened:
            return opened.width * opened.height

    per_pixel = _pixel_bytes(len(bands.names), bands.dtype) if bands else _pixel_bytes(3, "uint8")
    return sum(per_pixel.values()) * sum(in_threads(pixels, range(len(images)), "reading sizes"))


def _prepare(rows: datasets.Dataset, folder: Path, bands: Bands | None) -> None:
    needed, free = decoded_size(rows, bands), shutil.disk_usage(folder.parent).free
    size = f"{len(rows)} images need {needed / 2**30:.2f} GiB decoded, {folder.parent} has {free / 2**30:.2f} GiB free"
    if needed > free:
        raise ValueError(f"{size}. Give a cache_dir on a larger disk, or none.")
    logger.info("%s: writing %s", size, folder.name)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _write(rows, partial, bands)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    os.replace(partial, folder)


def _write(rows: datasets.Dataset, folder: Path, bands: Bands | None) -> None:
    sizes, image_ids = [], []
    kind = {"channels": len(bands.names), "dtype": bands.dtype} if bands else {}
    with open(folder / IMAGES, "wb") as images, open(folder / LABELS, "wb") as labels:
        for example in in_threads(lambda index: read_example(rows[index], bands), range(len(rows)), "decoding"):
            pixels = example["image"].permute(1, 2, 0).contiguous().numpy()
            images.write(pixels.astype(kind.get("dtype", "uint8"), copy=False).data)
            labels.write(_bytes(example["annotation"], example["image_id"]).numpy().data)
            sizes.append(list(example["annotation"].shape))
            image_ids.append(example["image_id"])
        for file in (images, labels):
            file.flush()
            os.fsync(file.fileno())
    (folder / INDEX).write_text(json.dumps({"sizes": sizes, "image_ids": image_ids} | kind), encoding="utf-8")


def _bytes(annotation: Tensor, image_id: str) -> Tensor:
    if annotation.min() < 0 or annotation.max() > 255:
        values = f"{int(annotation.min())} to {int(annotation.max())}"
        raise ValueError(f"The annotation of image '{image_id}' holds {values}; the decoded cache keeps 0 to 255.")
    return annotation.to(torch.uint8)
