"""From logits to a label map: windows, scales and flips, one class at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MODES = ("whole", "slide", "halves")
AVERAGES = ("logits", "probabilities")


@dataclass(frozen=True)
class Protocol:
    """How a model is applied to one image.

    Args:
        mode (`str`, *optional*, defaults to `"whole"`): `"whole"` runs the image at once; `"slide"` runs windows and
            averages where they overlap; `"halves"` runs the left and the right half and puts their logits side by
            side, as the SegFormer evaluation of CIRKD does on Cityscapes.
        window (`tuple[int, int]`, *optional*): Height and width of a window, pixels; for `"slide"` only.
        stride (`tuple[int, int]`, *optional*): Steps from window to window, pixels, at most the window's size. By
            default both are two thirds of the window's height, rounded up: 342 for 512x1024, as in Structured KD.
        scales (`tuple[float, ...]`, *optional*, defaults to `(1.0,)`): The image is run at each of these sizes.
        flip (`bool`, *optional*, defaults to `False`): Whether each view is run mirrored too.
        average (`str`, *optional*, defaults to `"logits"`): What is averaged over the views: `"logits"` (CIRKD, CSKD)
            or `"probabilities"`.
        align_corners (`bool`, *optional*): How logits are upsampled; `None` takes the model's own way.
        scale_align_corners (`bool`, *optional*, defaults to `False`): Whether the corner pixels of the image and of
            its scaled view coincide, as in all the original repositories; sizes are then rounded down, as there.

    Raises:
        ValueError: If a value is out of range, or does not belong to the mode.
    """

    mode: str = "whole"
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    average: str = "logits"
    align_corners: bool | None = None
    scale_align_corners: bool = False

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}.")
        if self.average not in AVERAGES:
            raise ValueError(f"average must be one of {', '.join(AVERAGES)}, got {self.average!r}.")
        if (self.mode == "slide") != (self.window is not None) or (self.window is None and self.stride is not None):
            raise ValueError(
                f"mode 'slide' needs a window, the other modes have none: got mode {self.mode!r}, "
                f"window {self.window} and stride {self.stride}."
            )
        if self.window is not None:
            side = -(-2 * self.window[0] // 3)
            object.__setattr__(self, "stride", self.stride or tuple(min(side, length) for length in self.window))
            pairs = zip(self.window, self.stride, strict=True)
            if len(self.window) != 2 or any(not 1 <= stride <= side for side, stride in pairs):
                raise ValueError(
                    f"window and stride must be (height, width) with 1 <= stride <= window, got {self.window} and "
                    f"{self.stride}. A larger stride would leave pixels without a prediction."
                )
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales must be positive numbers, at least one, got {self.scales}.")

    def __str__(self) -> str:
        sizes = ", ".join(f"{scale:g}" for scale in self.scales)
        parts = ["whole image" if self.mode == "whole" else self.mode]
        if self.window is not None:
            parts = ["windows {}x{}, stride {}x{}".format(*self.window, *self.stride)]
        parts.append("single scale" if self.scales == (1.0,) else f"scales {sizes}")
        parts += ["flipped too"] * self.flip
        parts += [f"mean of {self.average}"] * (self.flip or len(self.scales) > 1 or self.mode == "slide")
        if self.align_corners is not None:
            parts.append(f"align_corners={self.align_corners}")
        parts += ["images scaled with align_corners=True"] * self.scale_align_corners
        return ", ".join([*parts, "at label size"])


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
    maps = (_resize(x[:, None].float(), size, align_corners)[:, 0] for x in logits.unbind(dim=1))
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
    model: nn.Module, pixel_values: Tensor, protocol: Protocol, size: tuple[int, int], align_corners: bool
) -> Tensor:
    """Label map of one image under a protocol.

    Args:
        model (`nn.Module`): Called as `model(pixel_values=...)`; returns an output with `logits`.
        pixel_values (`torch.Tensor` of shape `(1, 3, H, W)`): The normalised image.
        protocol ([`Protocol`]): Windows, scales, flips.
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
    model: nn.Module, pixel_values: Tensor, protocol: Protocol, size: tuple[int, int]
) -> tuple[Iterator[Tensor], int]:
    """Scores (H, W) of one class after the other, averaged over all views, and the number of classes."""
    views = list(_views(model, pixel_values, protocol))
    if protocol.average == "logits":
        score = _View.logit_map
    else:
        score = _View.probability_map
        for view in views:
            view.normalise(size)
    num_labels = views[0].num_labels
    return (_mean([score(view, index, size) for view in views]) for index in range(num_labels)), num_labels


class _View:
    """Logits (K, h, w) of one scaled, maybe mirrored image: of one piece or of overlapping windows."""

    def __init__(self, size: tuple[int, int], windows: list[tuple[slice, slice, Tensor]], align_corners: bool):
        self.size, self.windows, self.align_corners = size, windows, align_corners
        self.num_labels = len(windows[0][2])
        self.count = windows[0][2].new_zeros(size)
        for rows, columns, _ in windows:
            self.count[rows, columns] += 1

    def logit_map(self, index: int, size: tuple[int, int]) -> Tensor:
        if len(self.windows) == 1:
            return _resize(self.windows[0][2][None, index : index + 1], size, self.align_corners)[0, 0]
        canvas = torch.zeros_like(self.count)
        for rows, columns, logits in self.windows:
            side = (rows.stop - rows.start, columns.stop - columns.start)
            canvas[rows, columns] += _resize(logits[None, index : index + 1], side, self.align_corners)[0, 0]
        return _resize((canvas / self.count)[None, None], size, self.align_corners)[0, 0]

    def normalise(self, size: tuple[int, int]) -> None:
        """Find the log-sum-exp over the classes at `size`, which probabilities need."""
        self.log_sum = self.logit_map(0, size)
        for index in range(1, self.num_labels):
            self.log_sum = torch.logaddexp(self.log_sum, self.logit_map(index, size))

    def probability_map(self, index: int, size: tuple[int, int]) -> Tensor:
        return (self.logit_map(index, size) - self.log_sum).exp()


def _views(model: nn.Module, pixel_values: Tensor, protocol: Protocol) -> Iterator[_View]:
    for scale in protocol.scales:
        rounded = math.floor if protocol.scale_align_corners else round
        size = tuple(max(1, rounded(side * scale)) for side in pixel_values.shape[-2:])
        image = pixel_values if scale == 1 else _resize(pixel_values, size, protocol.scale_align_corners)
        for mirrored in (False, True)[: 1 + protocol.flip]:
            windows = []
            for rows, columns in _boxes(size, protocol):
                logits = _logits(model, image.flip(-1) if mirrored else image, rows, columns, protocol.mode)
                if mirrored:
                    columns = slice(size[1] - columns.stop, size[1] - columns.start)
                    logits = logits.flip(-1)
                windows.append((rows, columns, logits))
            yield _View(size, windows, protocol.align_corners)


def _logits(model: nn.Module, image: Tensor, rows: slice, columns: slice, mode: str) -> Tensor:
    if mode != "halves":
        return model(pixel_values=image[..., rows, columns]).logits[0].float()
    middle = image.shape[-1] // 2
    halves = [model(pixel_values=half).logits[0].float() for half in (image[..., :middle], image[..., middle:])]
    return torch.cat(halves, dim=-1)


def _boxes(size: tuple[int, int], protocol: Protocol) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of each window; the last one ends at the border, so it may overlap more."""
    window = protocol.window or size
    starts = []
    for side, length, stride in zip(size, window, protocol.stride or size, strict=True):
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


def _resize(x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)
