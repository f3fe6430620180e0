"""Exported files at work: label maps, how far they are from PyTorch's, scores and time."""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hf_segkd.data.sampling import evenly_spread
from hf_segkd.evaluation.confusion import confusion_matrix, scores
from hf_segkd.evaluation.inference import upsampled_argmax
from hf_segkd.reports.tables import markdown_table

try:
    import onnxruntime
except ImportError as error:
    raise ImportError("ONNX files need onnxruntime: pip install 'hf-segkd[onnx]'") from error


logger = logging.getLogger(__name__)

Segmenter = Callable[[np.ndarray], np.ndarray]
# Height and width of what is compared, pixels.
_CROPS = (96, 128), (97, 131), (64, 199), (151, 80)


class OnnxSegmenter:
    """A file of [`~hf_segkd.deployment.onnx_export.export_onnx`], run by onnxruntime on the CPU.

    `metadata` holds what the file says of itself: `id2label`, `palette`, `size_multiple`, ...

    Args:
        path (`str` or `Path`): The file.

    Raises:
        ValueError: A file without that metadata; on a call, images that the file does not take.
    """

    def __init__(self, path: str | Path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        properties = self.session.get_modelmeta().custom_metadata_map
        if "size_multiple" not in properties:
            raise ValueError(f"'{path}' was not written by scripts/export.py: its metadata is missing.")
        self.metadata: dict[str, Any] = {key: json.loads(value) for key, value in properties.items()}

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Class ids (B, H, W) of uint8 RGB images (B, H, W, 3)."""
        self._check(images)
        (result,) = self.session.run(None, {"images": images})
        if self.metadata["output"] == "labels":
            return result
        return upsampled_argmax(torch.from_numpy(result), images.shape[1:3], self.metadata["align_corners"]).numpy()

    def _check(self, images: np.ndarray) -> None:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"Images must be uint8 RGB of shape (B, H, W, 3), got {images.dtype} of shape {images.shape}."
            )
        size, multiple = images.shape[1:3], self.metadata["size_multiple"]
        if multiple is None and list(size) != self.metadata["size"]:
            raise ValueError(f"This file is for images of {self.metadata['size']} pixels (height, width), got {size}.")
        if multiple is not None and (size[0] % multiple or size[1] % multiple):
            raise ValueError(
                f"This model takes heights and widths that are multiples of {multiple} pixels, got {size}. "
                "Pad or resize the image."
            )


def agreement(segmenter: Segmenter, reference: Segmenter, images: Iterable[np.ndarray]) -> float:
    """Fraction of pixels, over batches (B, H, W, 3) of any sizes, to which both give the same class."""
    equal = total = 0
    for batch in images:
        labels, expected = segmenter(batch), reference(batch)
        equal, total = equal + int((labels == expected).sum()), total + expected.size
    return equal / total


def evaluate_segmenter(segmenter: Segmenter, dataset: Dataset, num_labels: int, ignore_index: int = 255) -> dict:
    """[`~hf_segkd.evaluation.confusion.scores`] on whole images.

    Args:
        segmenter: An [`OnnxSegmenter`] or [`~hf_segkd.evaluation.segmenter.TorchSegmenter`].
        dataset (`torch.utils.data.Dataset`): Items with uint8 RGB `pixel_values` (3, H, W) and `labels` (H, W).
        num_labels (`int`): Number of classes K.
        ignore_index (`int`, *optional*, defaults to `255`): Label that is not scored.
    """
    matrix = torch.zeros(num_labels, num_labels, dtype=torch.int64)
    for index in range(len(dataset)):
        item = dataset[index]
        predicted = torch.from_numpy(segmenter(channels_last(item["pixel_values"])[None])[0])
        matrix += confusion_matrix(predicted, item["labels"], num_labels, ignore_index)
    return scores(matrix)


def channels_last(pixel_values: Tensor) -> np.ndarray:
    """uint8 (H, W, 3) of an image (3, H, W)."""
    return np.ascontiguousarray(pixel_values.permute(1, 2, 0).numpy())


def images_of(dataset: Dataset, count: int) -> list[np.ndarray]:
    """At most `count` images (H, W, 3) of a dataset, evenly spread."""
    return [channels_last(dataset[index]["pixel_values"]) for index in evenly_spread(len(dataset), count)]


def latency(segmenters: dict[str, Segmenter], image: np.ndarray, repeats: int = 20) -> dict[str, float]:
    """Median milliseconds of each on one image (H, W, 3), after two passes that do not count.

    The segmenters take turns, so that a machine that slows down slows all of them down.
    """
    seconds: dict[str, list[float]] = {name: [] for name in segmenters}
    for _ in range(repeats + 2):
        for name, segmenter in segmenters.items():
            start = time.perf_counter()
            segmenter(image[None])
            seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(values[2:]) for name, values in seconds.items()}


def crops(pictures: Iterable[np.ndarray], multiple: int) -> Iterator[np.ndarray]:
    """Batches (1, H, W, 3) cut from images (H, W, 3): even, odd, wide and high, in multiples of `multiple` pixels."""
    for picture in pictures:
        for sides in _CROPS:
            height, width = (min(pair) // multiple * multiple for pair in zip(sides, picture.shape[:2], strict=True))
            yield np.ascontiguousarray(picture[None, :height, :width])


def measurements(
    segmenters: dict[str, Segmenter],
    batches: Sequence[np.ndarray],
    image: np.ndarray,
    dataset: Dataset | None,
    num_labels: int,
    ignore_index: int = 255,
    repeats: int = 20,
) -> list[dict[str, Any]]:
    """Compare segmenters with the first of them.

    Args:
        segmenters (`dict[str, Segmenter]`): By name; the first is the reference.
        batches (`Sequence[np.ndarray]`): Images (B, H, W, 3) on which the predicted classes are compared.
        image (`np.ndarray`): Image (H, W, 3) on which time is measured.
        dataset (`torch.utils.data.Dataset`, *optional*): What is scored, see [`evaluate_segmenter`].
        num_labels (`int`): Number of classes K.
        ignore_index (`int`, *optional*, defaults to `255`): Label that is not scored.
        repeats (`int`, *optional*, defaults to `20`): Timed passes.

    Returns:
        `list[dict]`: Rows of `name`, `p50_ms`, `equal_pixels` (fraction) and, with a dataset, `mean_iou` (fraction).
    """
    reference = next(iter(segmenters.values()))
    milliseconds = latency(segmenters, image, repeats)
    rows = []
    for name, segmenter in segmenters.items():
        equal = agreement(segmenter, reference, batches)
        row = {"name": name, "p50_ms": milliseconds[name], "equal_pixels": equal}
        if dataset is not None:
            row["mean_iou"] = float(evaluate_segmenter(segmenter, dataset, num_labels, ignore_index)["mean_iou"])
            logger.info("%s: mIoU %.2f %% (%d images)", name, 100 * row["mean_iou"], len(dataset))
        rows.append(row)
    return rows


def to_markdown(rows: Sequence[dict[str, Any]], paths: dict[str, Path]) -> str:
    """Markdown of what [`measurements`] returned; `paths` gives the size of each file."""
    scored = "mean_iou" in rows[0]
    header = ["", "MiB", "p50 ms", "pixels as in PyTorch, %"] + ["mIoU, %", "difference"] * scored
    table = []
    for row in rows:
        size = f"{paths[row['name']].stat().st_size / 2**20:.2f}" if row["name"] in paths else ""
        cells = [row["name"], size, f"{row['p50_ms']:.1f}", f"{100 * row['equal_pixels']:.3f}"]
        if scored:
            cells += [f"{100 * row['mean_iou']:.2f}", f"{100 * (row['mean_iou'] - rows[0]['mean_iou']):+.2f}"]
        table.append(cells)
    return markdown_table(header, table)
