"""From dataset rows to uint8 training crops; normalization happens later, on the device, once per model."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from torch import Tensor

from hf_segkd.data.photometric import BandJitter, PhotometricJitter
from hf_segkd.data.reading import StoredImage, read_example
from hf_segkd.data.resizing import INTERPOLATIONS, Box
from hf_segkd.data.teacher_maps import TeacherMaps

if TYPE_CHECKING:
    from hf_segkd.models.bands import Bands

REDRAWS = 10  # of a crop with too much of one class, as in MMSegmentation; the last one is taken as it is


def check_labels(labels: Tensor, num_labels: int, ignore_index: int, image_id: str) -> None:
    """Refuse annotations that hold anything but train ids and `ignore_index`.

    Args:
        labels (`torch.Tensor`): Annotation, any integer type and shape.
        num_labels (`int`): Number of classes K; train ids are 0 to K - 1.
        ignore_index (`int`): Value of pixels that are not labeled.
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


class TrainTransform:
    """Random scale, padded random crop and horizontal flip of image and annotation together, in uint8.

    Scales are drawn from the grid lo, lo + step, ..., hi. Labels are resized by nearest only. Images smaller than the
    crop are padded at the bottom and on the right, then flipped with their padding, as in CIRKD. Padding becomes each
    model's own mean when its images are normalized: `content` says where the picture is.

    Args:
        crop_size (`tuple[int, int]`): Height and width of the result, pixels.
        scale_range (`tuple[float, float]`, *optional*, defaults to `(0.5, 2.0)`): Smallest and largest scale. CIRKD's.
        scale_step (`float`, *optional*, defaults to `0.1`): Distance between scales, > 0. CIRKD's.
        flip (`float`, *optional*, defaults to `0.5`): Probability of a horizontal flip.
        ignore_index (`int`, *optional*, defaults to `255`): Label of padded pixels.
        cat_max_ratio (`float`, *optional*, defaults to `1.0`): A crop in which one class covers this fraction of the
            labeled pixels or more is drawn again, up to 10 times; 1 takes every crop. MMSegmentation uses 0.75.
        jitter (`PhotometricJitter` or `BandJitter`, *optional*): Random change of colors; none in the originals.
        interpolation (`str`, *optional*, defaults to `"antialias"`): `"antialias"`, or `"opencv"`, which resizes
            image and labels exactly as the original repositories do, see [`~hf_segkd.data.resizing.OpenCVResize`].

    Returns:
        `dict`: `pixel_values` uint8 (3, h, w) in RGB, or the bands (C, h, w) of another image; `labels` int64 (h, w);
        and `content` int64 (4,): top, left, bottom and right of the picture in the crop, pixels; what lies outside is
        padding. With a teacher's stored map of the image, `teacher_logits` float32 (K, h', w') too: what the map says
        about that very crop.

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
        cat_max_ratio: float = 1.0,
        jitter: PhotometricJitter | BandJitter | None = None,
        interpolation: str = "antialias",
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
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {interpolation!r}.")
        self.crop_size = tuple(crop_size)
        self.flip = flip
        self.ignore_index = ignore_index
        self.cat_max_ratio = cat_max_ratio
        self.jitter = jitter
        self.resize = INTERPOLATIONS[interpolation]
        low, high, step = (Fraction(str(value)) for value in (*scale_range, scale_step))
        self.scales = self.resize.scales(low, (high - low) // step + 1, step)

    def __call__(self, example: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        example = read_example(example)
        image = example["image"]
        annotation = example["annotation"]
        scale = self.scales[_draw(len(self.scales), generator)]
        box = self._draw_box(annotation, scale, generator)
        source_height = annotation.shape[0]
        if isinstance(image, StoredImage):
            image = image.rows(self.resize.last_row(box, source_height, scale))
        image = self.resize.image(image, scale, box, source_height)
        mirrored = torch.rand((), generator=generator) < self.flip
        if self.jitter is not None:
            image = self.jitter(image, generator)
        pixel_values = torch.zeros((len(image), *self.crop_size), dtype=image.dtype)
        pixel_values[:, : box.height, : box.width] = image
        labels = torch.full(self.crop_size, self.ignore_index, dtype=torch.int64)
        labels[: box.height, : box.width] = self.resize.labels(annotation, scale, box)
        content = [0, 0, box.height, box.width]
        if mirrored:
            pixel_values = pixel_values.flip(-1)
            labels = labels.flip(-1)
            content = [0, self.crop_size[1] - box.width, box.height, self.crop_size[1]]
        item = {"pixel_values": pixel_values, "labels": labels, "content": torch.tensor(content)}
        if "teacher" in example:
            logits = example["teacher"](scale, box, self.crop_size)
            item["teacher_logits"] = logits.flip(-1) if mirrored else logits
        return item

    def _draw_box(self, annotation: Tensor, scale: Fraction, generator: torch.Generator) -> Box:
        """A crop of the resized picture."""
        resized = self.resize.size(annotation.shape, scale)
        height, width = (min(crop, size) for crop, size in zip(self.crop_size, resized, strict=True))
        for _ in range(1 + REDRAWS):
            top = _draw(resized[0] - height + 1, generator)
            left = _draw(resized[1] - width + 1, generator)
            box = Box(top, left, height, width)
            if self.cat_max_ratio == 1 or self._is_varied(self.resize.labels(annotation, scale, box)):
                break
        return box

    def _is_varied(self, labels: Tensor) -> bool:
        counts = np.unique(labels[labels != self.ignore_index].numpy(), return_counts=True)[1]
        return len(counts) > 1 and counts.max() < self.cat_max_ratio * counts.sum()


def _draw(stop: int, generator: torch.Generator) -> int:
    return int(torch.randint(stop, (), generator=generator))


class EvalTransform:
    """The whole image and its annotation at their original size.

    The image is uint8 (3, H, W) in RGB, or the bands (C, H, W) of another one; the annotation is int64 (H, W).

    Args:
        ignore_index (`int`, *optional*, defaults to `255`): Value of pixels that are not labeled.
    """

    def __init__(self, ignore_index: int = 255):
        self.ignore_index = ignore_index

    def __call__(self, example: dict[str, Any], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        example = read_example(example)
        image = example["image"]
        if isinstance(image, StoredImage):
            image = image.rows(image.shape[1])
        return {"pixel_values": image.contiguous(), "labels": example["annotation"].long()}


class SegmentationDataset(torch.utils.data.Dataset):
    """A Hugging Face dataset seen through a transform, with annotations checked at every access.

    The randomness of item i is a pure function of (seed, epoch, i): pixels depend neither on the number of workers nor
    on whether the run was resumed.

    Args:
        dataset (`datasets.Dataset` or `DecodedRows`): Columns `image`, `annotation`, `image_id`.
        transform (`TrainTransform` or `EvalTransform`): Its `ignore_index` is the one annotations may hold.
        num_labels (`int`): Number of classes K; annotations may hold 0 to K - 1.
        seed (`int`, *optional*, defaults to `0`): Seed of the augmentation, >= 0.
        bands ([`~hf_segkd.models.Bands`], *optional*): What images hold that are not 8-bit RGB.

    Raises:
        `ValueError`: If a column is missing; on access, if an annotation is unusable (the message names the image).
    """

    def __init__(
        self,
        dataset,
        transform: TrainTransform | EvalTransform,
        num_labels: int,
        seed: int = 0,
        bands: Bands | None = None,
    ):
        missing = {"image", "annotation", "image_id"} - set(dataset.column_names)
        if missing:
            raise ValueError(
                f"The dataset lacks the columns {sorted(missing)}, it has {sorted(dataset.column_names)}. "
                "Rename its columns to image, annotation and image_id."
            )
        if isinstance(dataset, datasets.Dataset):
            dataset = _left_encoded(dataset)
        self.dataset, self.transform, self.num_labels, self.seed = dataset, transform, num_labels, seed
        self.bands = bands
        self.teacher: TeacherMaps | None = None  # stored maps of the same images, of which each crop gets its part
        # Shared memory: workers that live on from epoch to epoch would keep their own copy of a plain number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation the next items show, in this process and in running workers."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        index = range(len(self))[index]
        example = read_example(self.dataset[index], self.bands)
        check_labels(example["annotation"], self.num_labels, self.transform.ignore_index, example["image_id"])
        if self.teacher is not None:
            example = {**example, "teacher": partial(self.teacher.crop, index)}
        state = np.random.SeedSequence([self.seed, int(self._epoch), index]).generate_state(1)
        return self.transform(example, torch.Generator().manual_seed(int(state[0])))


def _left_encoded(rows: datasets.Dataset) -> datasets.Dataset:
    """The same rows with encoded images, which a crop needs in part; a transform of the rows gets them as they are."""
    if rows.format["type"] is not None or not isinstance(rows.features["image"], datasets.Image):
        return rows
    return rows.cast_column("image", datasets.Image(decode=False))


def collate(batch: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack items to `pixel_values` (B, C, H, W), `labels` (B, H, W) and, of training crops, `content` (B, 4) and,
    where a teacher's maps are stored, `teacher_logits` (B, K, h, w).

    Raises:
        `ValueError`: If the items differ in size.
    """
    sizes = {tuple(item["labels"].shape) for item in batch}
    if len(sizes) > 1:
        raise ValueError(
            f"Images of different sizes {sorted(sizes)} cannot share a batch. "
            "Use batch size 1 for evaluation, and a crop_size for training."
        )
    keys = [key for key in ("pixel_values", "labels", "content", "teacher_logits") if key in batch[0]]
    return {key: torch.stack([item[key] for item in batch]) for key in keys}
