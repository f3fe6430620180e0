"""From logits to a label map: crops, scales and flips, one class at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_segkd.evaluation.settings import InferenceProtocol


def upsampled_argmax(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Best class of each pixel after bilinear upsampling.

    Goes through the classes one at a time, so that no float tensor of all classes at image size exists; equal to
    `interpolate(logits).argmax(1)`, ties included.

    Args:
        logits (`torch.Tensor` of shape `(B, K, h, w)`): Class scores, any float type; compared in float32.
        size (`tuple[int, int]`): Height H and width W of the result, pixels.
        align_corners (`bool`): As in `torch.nn.functional.interpolate`.

    Returns:
        `torch.Tensor`: Class ids (B, H, W), uint8 up to 256 classes, else int32.
    """
    maps = (resize(x[:, None].float(), size, align_corners)[:, 0] for x in logits.unbind(dim=1))
    return running_argmax(maps, logits.shape[1])


def running_argmax(maps: Iterator[Tensor], num_labels: int) -> Tensor:
    """Argmax over maps (..., H, W) that come one class at a time; the first of equal classes wins."""
    best = next(maps).clone()
    labels = torch.zeros_like(best, dtype=torch.uint8 if num_labels <= 256 else torch.int32)
    for index, scores in enumerate(maps, start=1):
        labels.masked_fill_(scores > best, index)
        torch.maximum(best, scores, out=best)
    return labels


@torch.inference_mode()
def predict(
    model: nn.Module, pixel_values: Tensor, protocol: InferenceProtocol, size: tuple[int, int], align_corners: bool
) -> Tensor:
    """Label map of one image under a protocol.

    Args:
        model (`nn.Module`): Called as `model(pixel_values=...)`; returns an output with `logits`.
        pixel_values (`torch.Tensor` of shape `(1, 3, H, W)`): The normalized image.
        protocol ([`~hf_segkd.evaluation.settings.InferenceProtocol`]): Crops, scales, flips.
        size (`tuple[int, int]`): Height and width of the labels, pixels; the result has this size.
        align_corners (`bool`): The model's own way, used where the protocol does not say.

    Returns:
        `torch.Tensor`: Class ids (H, W), uint8 up to 256 classes, else int32.
    """
    if protocol.align_corners is not None:
        align_corners = protocol.align_corners
    maps, num_labels = class_maps(model, pixel_values, replace(protocol, align_corners=align_corners), size)
    return running_argmax(maps, num_labels)


def class_maps(
    model: nn.Module, pixel_values: Tensor, protocol: InferenceProtocol, size: tuple[int, int]
) -> tuple[Iterator[Tensor], int]:
    """Scores (H, W) of one class of one image after the other, averaged over all views, and the number of classes."""
    seen = list(views(model, pixel_values, protocol))
    if protocol.average == "logits":
        score = View.logit_map
    else:
        score = View.probability_map
        for view in seen:
            view.normalize(size)
    classes = range(seen[0].num_labels)
    return (_mean([score(view, slice(k, k + 1), size) for view in seen])[0, 0] for k in classes), len(classes)


class View:
    """Logits (B, K, h, w) of scaled, maybe mirrored images: of one piece or of overlapping crops."""

    def __init__(self, size: tuple[int, int], crops: list[tuple[slice, slice, Tensor]], align_corners: bool):
        self.size, self.crops, self.align_corners = size, crops, align_corners
        self.num_labels = crops[0][2].shape[1]
        self.count = crops[0][2].new_zeros(size)
        for rows, columns, _ in crops:
            self.count[rows, columns] += 1

    def logit_map(self, classes: slice, size: tuple[int, int]) -> Tensor:
        """Logits (B, n, H, W) of some classes, upsampled to `size`."""
        if len(self.crops) == 1:
            return resize(self.crops[0][2][:, classes], size, self.align_corners)
        some = self.crops[0][2][:, classes]
        canvas = some.new_zeros(*some.shape[:2], *self.size)
        for rows, columns, logits in self.crops:
            side = (rows.stop - rows.start, columns.stop - columns.start)
            canvas[..., rows, columns] += resize(logits[:, classes], side, self.align_corners)
        return resize(canvas / self.count, size, self.align_corners)

    def positions(self, axis: int, side: int) -> int:
        """Positions that such maps have for a height (axis 0) or width (axis 1) of `side` pixels, at scale 1."""
        rows_or_columns = self.crops[0][axis]
        logits = self.crops[0][2]
        return round(side * logits.shape[2 + axis] / (rows_or_columns.stop - rows_or_columns.start))

    def normalize(self, size: tuple[int, int]) -> None:
        """Find the log-sum-exp over the classes at `size`, which probabilities need."""
        self.log_sum = self.logit_map(slice(0, 1), size)
        for index in range(1, self.num_labels):
            self.log_sum = torch.logaddexp(self.log_sum, self.logit_map(slice(index, index + 1), size))

    def probability_map(self, classes: slice, size: tuple[int, int]) -> Tensor:
        """Probabilities (B, n, H, W) of some classes at `size`, after [`normalize`]."""
        return (self.logit_map(classes, size) - self.log_sum).exp()


def views(model: nn.Module, pixel_values: Tensor, protocol: InferenceProtocol) -> Iterator[View]:
    """Run a model on every view of images (B, 3, H, W) that a protocol describes."""
    for scale in protocol.scales:
        rounded = math.floor if protocol.scale_align_corners else round
        size = tuple(max(1, rounded(side * scale)) for side in pixel_values.shape[-2:])
        image = pixel_values if scale == 1 else resize(pixel_values, size, protocol.scale_align_corners)
        for mirrored in (False, True)[: 1 + protocol.flip]:
            crops = []
            for rows, columns in _boxes(size, protocol):
                logits = _logits(model, image.flip(-1) if mirrored else image, rows, columns, protocol.mode)
                if mirrored:
                    columns = slice(size[1] - columns.stop, size[1] - columns.start)
                    logits = logits.flip(-1)
                crops.append((rows, columns, logits))
            yield View(size, crops, protocol.align_corners)


def _logits(model: nn.Module, image: Tensor, rows: slice, columns: slice, mode: str) -> Tensor:
    if mode != "halves":
        return model(pixel_values=image[..., rows, columns]).logits.float()
    middle = image.shape[-1] // 2
    halves = [model(pixel_values=half).logits.float() for half in (image[..., :middle], image[..., middle:])]
    return torch.cat(halves, dim=-1)


def _boxes(size: tuple[int, int], protocol: InferenceProtocol) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of each crop; the last one ends at the border, so it may overlap more."""
    crop_size = protocol.crop_size or size
    starts = []
    for side, length, stride in zip(size, crop_size, protocol.stride or size, strict=True):
        length = min(length, side)
        starts.append(
            [(min(start, side - length), length) for start in range(0, max(side - length, 0) + stride, stride)]
        )
    for top, height in dict.fromkeys(starts[0]):
        for left, width in dict.fromkeys(starts[1]):
            yield slice(top, top + height), slice(left, left + width)


def _mean(maps: list[Tensor]) -> Tensor:
    total = maps[0]
    for other in maps[1:]:
        total = total + other
    return total / len(maps) if len(maps) > 1 else total


def resize(x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Bilinear resizing of maps (B, C, h, w) to `size`; as they are, where that is their size."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)
