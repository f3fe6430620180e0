"""From dataset rows to uint8 training crops; normalisation happens later, on the device, once per model."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_segkd.data.photometric import PhotometricJitter
from hf_segkd.data.reading import StoredImage, read_example

REDRAWS = 10  # of a crop with too much of one class, as in MMSegmentation; the last one is taken as it is


def check_labels(labels: Tensor, num_labels: int, ignore_index: int, image_id: str) -> None:
    """Refuse annotations that hold anything but train ids and `ignore_index`.

    Args:
        labels (`torch.Tensor`): Annotation, any integer type and shape.
        num_labels (`int`): Number of classes K; train ids are 0 to K - 1.
        ignore_index (`int`): Value of pixels that are not labelled.
        image_id (`str`): Named in the message.

    Raises:
        `ValueError`: Names the image, the values found, and the values allowed.
    """
    # In numpy: torch needs fifty times as long for the same, and would take uint8 255 for -1.
    array = labels.numpy()
    wrong = ((array < 0) | (array >= num_labels)) & (array != ignore_index)
    if wrong.any():
        values = np.unique(array[wrong]).tolist()
        shown = ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
        raise ValueError(
            f"The annotation of image '{image_id}' holds {shown}; allowed are 0 to {num_labels - 1} and "
            f"{ignore_index} (ignored). Map raw ids to train ids in the dataset builder, or use this model's dataset."
        )


def _source_window(start: int, length: int, source: int, scale: Fraction) -> tuple[int, int, int]:
    """Source interval that is enough to resize to `start .. start + length`, and where `start` lies in its result.

    With scale p/q the sampling grid repeats every p output and q source pixels, so a window that begins at a multiple
    of q is sampled at the very positions the whole image would be.
    """
    margin = math.ceil(max(1, 1 / scale)) + 1  # reach of the antialiased triangle filter, in source pixels
    period = max(0, math.floor(start / scale) - margin) // scale.denominator
    stop = min(source, math.ceil((start + length) / scale) + margin)
    return period * scale.denominator, stop, start - period * scale.numerator


def _nearest(start: int, length: int, scale: Fraction) -> Tensor:
    """Source index of each output pixel: the one that contains its centre, in exact integer arithmetic."""
    centres = 2 * torch.arange(start, start + length) + 1
    return centres * scale.denominator // (2 * scale.numerator)


def resized_labels(labels: Tensor, scale: Fraction, top: int, left: int, height: int, width: int) -> Tensor:
    """Crop of the labels (H, W) resized by nearest, computed from the pixels that survive."""
    rows, columns = _nearest(top, height, scale), _nearest(left, width, scale)
    # numpy's take needs a quarter of the time of torch's index_select here.
    return torch.from_numpy(labels.numpy().take(rows.numpy(), axis=0).take(columns.numpy(), axis=1))


def resized_crop(
    image: Tensor, labels: Tensor, scale: Fraction, top: int, left: int, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Crop of the resized pair, computed from the surviving source window only.

    Equal to resizing everything to floor(H·scale) x floor(W·scale) pixels and cropping afterwards: to one grey level
    for the image (the rounding of torch's uint8 kernel), exactly for the labels.
    """
    labels = resized_labels(labels, scale, top, left, height, width)
    if scale == 1:
        return image[:, top : top + height, left : left + width], labels
    y0, y1, y = _source_window(top, height, image.shape[1], scale)
    x0, x1, x = _source_window(left, width, image.shape[2], scale)
    # torch floors size * factor in floating point: the nudge keeps 100 * 0.29 at 29.
    factor = float(scale) * (1 + 1e-12)
    window = F.interpolate(
        image[None, :, y0:y1, x0:x1],
        scale_factor=factor,
        mode="bilinear",
        antialias=True,
        align_corners=False,
        recompute_scale_factor=False,
    )[0]
    return window[:, y : y + height, x : x + width], labels


class TrainTransform:
    """Random scale, padded random crop and horizontal flip of image and annotation together, in uint8.

    Scales are drawn from the grid lo, lo + step, ..., hi. Labels are resized by nearest only. Images smaller than the
    crop are padded at the bottom and on the right.

    Args:
        crop_size (`tuple[int, int]`): Height and width of the result, pixels.
        scale_range (`tuple[float, float]`, *optional*, defaults to `(0.5, 2.0)`): Smallest and largest scale. CIRKD's.
        scale_step (`float`, *optional*, defaults to `0.1`): Distance between scales, > 0. CIRKD's.
        flip (`float`, *optional*, defaults to `0.5`): Probability of a horizontal flip.
        ignore_index (`int`, *optional*, defaults to `255`): Label of padded pixels.
        fill (`tuple[int, int, int]`, *optional*, defaults to `(124, 116, 104)`): RGB of padding, ImageNet's mean.
        cat_max_ratio (`float`, *optional*, defaults to `1.0`): A crop in which one class covers this fraction of the
            labelled pixels or more is drawn again, up to 10 times; 1 takes every crop. MMSegmentation uses 0.75.
        jitter (`PhotometricJitter`, *optional*): Random change of colours; none in the originals.

    Returns:
        `dict`: `pixel_values` uint8 (3, h, w) in RGB and `labels` int64 (h, w).

    Raises:
        `ValueError`: If an argument is out of range.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        scale_range: tuple[float, float] = (0.5, 2.0),
        scale_step: float = 0.1,
        flip: float = 0.5,
        ignore_index: int = 255,
        fill: tuple[int, int, int] = (124, 116, 104),
        cat_max_ratio: float = 1.0,
        jitter: PhotometricJitter | None = None,
    ):
        if len(crop_size) != 2 or min(crop_size) < 1:
            raise ValueError(f"crop_size must be (height, width), both at least 1 pixel, got {crop_size}.")
        if len(scale_range) != 2 or not 0 < scale_range[0] <= scale_range[1]:
            raise ValueError(f"scale_range must be (lowest, highest) with 0 < lowest <= highest, got {scale_range}.")
        if scale_step <= 0:
            raise ValueError(f"scale_step must be positive, got {scale_step}.")
        if not 0 <= flip <= 1:
            raise ValueError(f"flip must be a probability between 0 and 1, got {flip}.")
        if not 0 < cat_max_ratio <= 1:
            raise ValueError(f"cat_max_ratio must be a fraction, above 0 and at most 1, got {cat_max_ratio}.")
        self.crop_size, self.flip, self.ignore_index = tuple(crop_size), flip, ignore_index
        self.cat_max_ratio, self.jitter = cat_max_ratio, jitter
        low, high, step = (Fraction(str(value)) for value in (*scale_range, scale_step))
        self.scales = [low + index * step for index in range((high - low) // step + 1)]
        self.fill = torch.tensor(fill, dtype=torch.uint8).view(3, 1, 1)

    def __call__(self, example: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        example = read_example(example)
        image, annotation = example["image"], example["annotation"]
        scale = self.scales[_draw(len(self.scales), generator)]
        box = self._draw_box(annotation, scale, generator)
        if isinstance(image, StoredImage):
            top, _, height, _ = box
            image = image.rows(_source_window(top, height, image.shape[1], scale)[1])
        image, annotation = resized_crop(image, annotation, scale, *box)
        if torch.rand((), generator=generator) < self.flip:
            image, annotation = image.flip(-1), annotation.flip(-1)
        if self.jitter is not None:
            image = self.jitter(image, generator)
        height, width = annotation.shape
        pixel_values = self.fill.repeat(1, *self.crop_size)
        pixel_values[:, :height, :width] = image
        labels = torch.full(self.crop_size, self.ignore_index, dtype=torch.int64)
        labels[:height, :width] = annotation
        return {"pixel_values": pixel_values, "labels": labels}

    def _draw_box(self, annotation: Tensor, scale: Fraction, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of a crop of the resized picture."""
        resized = [max(1, math.floor(size * scale)) for size in annotation.shape]
        height, width = (min(crop, size) for crop, size in zip(self.crop_size, resized, strict=True))
        for _ in range(1 + REDRAWS):
            top, left = _draw(resized[0] - height + 1, generator), _draw(resized[1] - width + 1, generator)
            box = (top, left, height, width)
            if self.cat_max_ratio == 1 or self._is_varied(resized_labels(annotation, scale, *box)):
                break
        return box

    def _is_varied(self, labels: Tensor) -> bool:
        counts = np.unique(labels[labels != self.ignore_index].numpy(), return_counts=True)[1]
        return len(counts) > 1 and counts.max() < self.cat_max_ratio * counts.sum()


def _draw(stop: int, generator: torch.Generator) -> int:
    return int(torch.randint(stop, (), generator=generator))


class EvalTransform:
    """The whole image as uint8 (3, H, W) in RGB and its annotation as int64 (H, W), at their original size.

    Args:
        ignore_index (`int`, *optional*, defaults to `255`): Value of pixels that are not labelled.
    """

    def __init__(self, ignore_index: int = 255):
        self.ignore_index = ignore_index

    def __call__(self, example: dict[str, Any], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        example = read_example(example)
        return {"pixel_values": example["image"].contiguous(), "labels": example["annotation"].long()}


class SegmentationDataset(torch.utils.data.Dataset):
    """A Hugging Face dataset seen through a transform, with annotations checked at every access.

    The randomness of item i is a pure function of (seed, epoch, i): pixels depend neither on the number of workers nor
    on whether the run was resumed.

    Args:
        dataset (`datasets.Dataset` or `DecodedRows`): Columns `image`, `annotation`, `image_id`.
        transform (`TrainTransform` or `EvalTransform`): Its `ignore_index` is the one annotations may hold.
        num_labels (`int`): Number of classes K; annotations may hold 0 to K - 1.
        seed (`int`, *optional*, defaults to `0`): Seed of the augmentation, >= 0.

    Raises:
        `ValueError`: If a column is missing; on access, if an annotation is unusable (the message names the image).
    """

    def __init__(self, dataset, transform: TrainTransform | EvalTransform, num_labels: int, seed: int = 0):
        missing = {"image", "annotation", "image_id"} - set(dataset.column_names)
        if missing:
            raise ValueError(
                f"The dataset lacks the columns {sorted(missing)}, it has {sorted(dataset.column_names)}. "
                "Rename its columns to image, annotation and image_id."
            )
        if isinstance(transform, TrainTransform) and isinstance(dataset, datasets.Dataset):
            dataset = _left_encoded(dataset)
        self.dataset, self.transform, self.num_labels, self.seed = dataset, transform, num_labels, seed
        # Shared memory: workers that live on from epoch to epoch would keep their own copy of a plain number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation the next items show, in this process and in running workers."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        index = range(len(self))[index]
        example = read_example(self.dataset[index])
        check_labels(example["annotation"], self.num_labels, self.transform.ignore_index, example["image_id"])
        state = np.random.SeedSequence([self.seed, int(self._epoch), index]).generate_state(1)
        return self.transform(example, torch.Generator().manual_seed(int(state[0])))


def _left_encoded(rows: datasets.Dataset) -> datasets.Dataset:
    """The same rows with encoded images, which a crop needs in part; a transform of the rows gets whole ones."""
    if rows.format["type"] is not None or not isinstance(rows.features["image"], datasets.Image):
        return rows
    return rows.cast_column("image", datasets.Image(decode=False))


def collate(batch: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack items to `pixel_values` (B, 3, H, W) and `labels` (B, H, W).

    Raises:
        `ValueError`: If the items differ in size.
    """
    sizes = {tuple(item["labels"].shape) for item in batch}
    if len(sizes) > 1:
        raise ValueError(
            f"Images of different sizes {sorted(sizes)} cannot share a batch. "
            "Use batch size 1 for evaluation, and a crop_size for training."
        )
    return {key: torch.stack([item[key] for item in batch]) for key in ("pixel_values", "labels")}
