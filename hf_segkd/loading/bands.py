"""Students that read other images than 8-bit RGB: their first convolution, and the processor that goes with it."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from hf_segkd.data.band_statistics import band_statistics
from hf_segkd.loading.native import expose_features
from hf_segkd.models import (
    RGB,
    Bands,
    InputNormalization,
    SegmentationImageProcessor,
    channel_config,
    input_channels,
    upsamples_with_align_corners,
)

logger = logging.getLogger(__name__)


def check_reads(processor: BaseImageProcessor, images: Bands | None, who: str = "model") -> None:
    """Refuse a model that cannot read a dataset's images.

    Raises:
        ValueError: It reads bands, and these are 8-bit RGB; bands of another type; bands that are missing; or a model
            of 8-bit RGB finds no range.
    """
    reads = Bands.of(processor)
    if reads is not None and images is None:
        raise ValueError(
            f"The {who} reads {reads}; nothing was said about the images, so they are 8-bit RGB. "
            "Name their bands: --bands."
        )
    InputNormalization.from_processor(processor, images)


def student_for_bands(
    student: PreTrainedModel,
    processor: BaseImageProcessor,
    bands: Bands,
    training_images: Dataset,
    fields: dict[str, Any],
    is_new: bool,
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """A student that reads all bands of a dataset.

    One that reads them already stays as it is, mean and std included. Any other gets a first convolution for so many
    channels, [`widen`], and a processor with mean and std of each band: those of `fields`, else measured on the
    training images.

    Args:
        student, processor: From [`~hf_segkd.loading.any_model.load_model`].
        bands ([`~hf_segkd.models.Bands`]): What the images hold.
        training_images (`torch.utils.data.Dataset`): Whole, with `pixel_values` (C, H, W) as they are stored.
        fields (`dict`): Of the student's `processor`: `image_mean` and `image_std`, one value for each band, in units
            of the stored values (bytes: of values / 255).
        is_new (`bool`): Whether all its weights are random, so that there are no filters to keep.

    Raises:
        ValueError: The student reads other bands, or one of the two fields is given without the other, or others.
    """
    reads = Bands.of(processor)
    if reads is not None:
        if (reads.names, reads.dtype) != (bands.names, bands.dtype):
            raise ValueError(f"The student reads {reads}, the images hold {bands}: store and name both alike.")
        return student, processor
    if set(fields) not in (set(), {"image_mean", "image_std"}):
        raise ValueError(f"student.processor of bands takes image_mean and image_std, both, got {', '.join(fields)}.")
    scale = 255 if bands.dtype == "uint8" else 1
    if not fields:
        mean, std = band_statistics(training_images, bands.names)
        fields = {"image_mean": [x / scale for x in mean], "image_std": [x / scale for x in std]}
        logger.info("Measured on the training images: mean %s, std %s", _shown(mean), _shown(std))
    order = RGB[::-1] if processor.to_dict().get("do_flip_channel_order") else RGB
    new_processor = SegmentationImageProcessor(
        **fields,
        do_rescale=scale != 1,
        align_corners=upsamples_with_align_corners(student.config),
        bands=bands.names,
        pixel_dtype=bands.dtype,
        pixel_range=bands.pixel_range,
    )
    return widen(student, bands.names, order, is_new), new_processor


def widen(
    student: PreTrainedModel, names: tuple[str, ...], order: tuple[str, ...] = RGB, is_new: bool = False
) -> PreTrainedModel:
    """The same network for images of N bands.

    Its first convolution has the filters `3/N · F`: F is the one of that color where a band is called red, green or
    blue, and their mean for any other. So the network answers a gray picture, the same in all bands, as it did before
    where all three colors or none of them are among the bands. Statistics and slopes of image channels (ESPNet joins
    the image to its maps) are copied by the same rule, unscaled.

    Args:
        student (`PreTrainedModel`): Reads three channels.
        names (`tuple[str, ...]`): The N bands.
        order (`tuple[str, ...]`, *optional*): Colors in the order that the student reads them, RGB by default.
        is_new (`bool`, *optional*, defaults to `False`): Leave the weights of the new network random.

    Raises:
        ValueError: A kind of network whose number of channels is not a field of its config.

    Reference: the factor 3/N is that of `adapt_input_conv` in timm, https://github.com/huggingface/pytorch-image-models
    """
    if channel_config(student.config) is None:
        raise ValueError(
            f"{type(student).__name__} reads three channels and no others: its config has no num_channels. "
            "Take another student."
        )
    if input_channels(student.config) != 3:
        raise ValueError(f"The student reads {input_channels(student.config)} channels without names, not RGB.")
    wide = _with_channels(student, len(names))
    if not is_new:
        # What has another shape in a network of four channels belongs to the image.
        with torch.device("meta"):
            shapes = {key: value.shape for key, value in _with_channels(student, 4).state_dict().items()}
        positions = [order.index(name) if name in order else None for name in names]
        weights = {key: _spread(value, shapes[key], positions) for key, value in student.state_dict().items()}
        wide.load_state_dict(weights, strict=True)
    return expose_features(wide)


def _with_channels(student: PreTrainedModel, count: int) -> PreTrainedModel:
    config = copy.deepcopy(student.config)
    channel_config(config).num_channels = count
    return type(student)(config).train(student.training)


def _spread(weights: Tensor, other: torch.Size, positions: list[int | None]) -> Tensor:
    """A tensor for other bands: in the dimensions that differ from `other`, the last three entries are the image's."""
    for axis in [axis for axis, (ours, theirs) in enumerate(zip(weights.shape, other, strict=True)) if ours != theirs]:
        rest, image = weights.split([weights.shape[axis] - 3, 3], dim=axis)
        mean = image.mean(dim=axis, keepdim=True)
        bands = [mean if index is None else image.narrow(axis, index, 1) for index in positions]
        scale = 3 / len(positions) if axis == 1 else 1.0
        weights = torch.cat([rest, *(scale * band for band in bands)], dim=axis)
    return weights


def _shown(values: list[float]) -> str:
    return ", ".join(f"{value:.5g}" for value in values)
