"""Running exported files: label maps, agreement with PyTorch, scores and time."""

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
from hf_segkd.evaluation.inference import upsampled_argmax
from hf_segkd.evaluation.scoring import evaluate
from hf_segkd.evaluation.segmenter import BaseSegmenter
from hf_segkd.models import Bands
from hf_segkd.reports.tables import markdown_table

try:
    import onnxruntime
except ImportError as error:
    raise ImportError("ONNX files need onnxruntime: pip install 'hf-segkd[onnx]'") from error


logger = logging.getLogger(__name__)

# From images (B, H, W, 3) to class ids (B, H, W): a segmenter, or in a test a function.
Segment = Callable[[np.ndarray], np.ndarray]
# Height and width of what is compared, pixels.
_CROPS = (96, 128), (97, 131), (64, 199), (151, 80)


class OnnxSegmenter(BaseSegmenter):
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
            raise ValueError(f"'{path}' was not written by hf-segkd export: its metadata is missing.")
        self.metadata: dict[str, Any] = {key: json.loads(value) for key, value in properties.items()}
        self.id2label = {int(index): name for index, name in self.metadata["id2label"].items()}
        if names := self.metadata.get("bands"):  # files of earlier versions are of 8-bit RGB
            self.bands = Bands(tuple(names), self.metadata["pixel_dtype"], self.metadata["pixel_range"])

    def predict(self, pixel_values: Tensor, size: tuple[int, int]) -> Tensor:
        self._check(tuple(pixel_values.shape[-2:]))
        images = np.ascontiguousarray(pixel_values.permute(0, 2, 3, 1).cpu().numpy())
        (result,) = self.session.run(None, {"images": images})
        result = torch.from_numpy(result)
        if self.metadata["output"] == "logits":
            return upsampled_argmax(result, size, self.metadata["align_corners"])
        if tuple(result.shape[-2:]) != size:
            raise ValueError(
                f"This file gives label maps at the size of its images, {tuple(result.shape[-2:])}, not {size}. "
                "Export the model with --output logits."
            )
        return result

    def _check(self, size: tuple[int, int]) -> None:
        multiple = self.metadata["size_multiple"]
        if multiple is None and list(size) != self.metadata["size"]:
            raise ValueError(f"This file is for images of {self.metadata['size']} pixels (height, width), got {size}.")
        if multiple is not None and (size[0] % multiple or size[1] % multiple):
            raise ValueError(
                f"This model takes heights and widths that are multiples of {multiple} pixels, got {size}. "
                "Pad or resize the image."
            )


def agreement(segmenter: Segment, reference: Segment, images: Iterable[np.ndarray]) -> float:
    """Fraction of pixels, over batches (B, H, W, 3) of any sizes, to which both give the same class."""
    equal = total = 0
    for batch in images:
        labels, expected = segmenter(batch), reference(batch)
        equal += int((labels == expected).sum())
        total += expected.size
    return equal / total


def channels_last(pixel_values: Tensor) -> np.ndarray:
    """Pixels (H, W, C) of an image (C, H, W)."""
    return np.ascontiguousarray(pixel_values.permute(1, 2, 0).numpy())


def images_of(dataset: Dataset, count: int) -> list[np.ndarray]:
    """At most `count` images (H, W, 3) of a dataset, evenly spread."""
    return [channels_last(dataset[index]["pixel_values"]) for index in evenly_spread(len(dataset), count)]


def latency(segmenters: dict[str, Segment], image: np.ndarray, repeats: int = 20) -> dict[str, float]:
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
    segmenters: dict[str, Segment],
    batches: Sequence[np.ndarray],
    image: np.ndarray,
    dataset: Dataset | None,
    num_labels: int,
    ignore_index: int = 255,
    repeats: int = 20,
) -> list[dict[str, Any]]:
    """Compare segmenters with the first of them.

    Args:
        segmenters (`dict[str, Segment]`): By name; the first is the reference.
        batches (`Sequence[np.ndarray]`): Images (B, H, W, 3) on which the predicted classes are compared.
        image (`np.ndarray`): Image (H, W, 3) on which time is measured.
        dataset (`torch.utils.data.Dataset`, *optional*): Scored by [`~hf_segkd.evaluation.scoring.evaluate`].
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
            evaluation = evaluate(segmenter, dataset, num_labels, ignore_index, title=f"evaluating {name}")
            row["mean_iou"] = evaluation.scores()["mean_iou"]
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
