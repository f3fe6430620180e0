"""Resize an image and its labels by one random scale, computing the crop only."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# OpenCV weighs with 11 bits in each direction and rounds in two steps.
COEFFICIENT_BITS = 11
BLOCK = 8  # rows of the crop at a time: what they need stays in the processor's cache


class Box(NamedTuple):
    """A crop of the resized picture, pixels."""

    top: int
    left: int
    height: int
    width: int


class AntialiasedResize:
    """torch's antialiased bilinear filter; each label is the one whose pixel contains the new pixel's center.

    A picture of H x W becomes floor(H·scale) x floor(W·scale) pixels.
    """

    def scales(self, low: Fraction, count: int, step: Fraction) -> list[Fraction]:
        """The grid low, low + step, ... of `count` scales."""
        return [low + index * step for index in range(count)]

    def size(self, shape: tuple[int, int], scale: Fraction) -> tuple[int, int]:
        """Height and width of the resized picture."""
        height, width = (max(1, math.floor(side * scale)) for side in shape)
        return height, width

    def last_row(self, box: Box, source_height: int, scale: Fraction) -> int:
        """Rows of the source, from the first, that the crop needs."""
        return _source_window(box.top, box.height, source_height, scale)[1]

    def labels(self, labels: Tensor, scale: Fraction, box: Box) -> Tensor:
        """Crop of the resized labels (H, W)."""
        rows = _containing_pixel(box.top, box.height, scale)
        columns = _containing_pixel(box.left, box.width, scale)
        return _take(labels, rows, columns)

    def image(self, image: Tensor, scale: Fraction, box: Box, source_height: int) -> Tensor:
        """Crop of the resized image (3, H, W), uint8; at least `last_row` rows of it.

        Equal to resizing everything and cropping afterwards to one gray level (the rounding of torch's uint8 kernel).
        """
        top, left, height, width = box
        if scale == 1:
            return image[:, top : top + height, left : left + width]
        y0, y1, y = _source_window(top, height, source_height, scale)
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
        return window[:, y : y + height, x : x + width]


class OpenCVResize:
    """What `cv2.resize(picture, None, fx=scale, fy=scale)` does, as all the original repositories resize.

    Images by INTER_LINEAR, which takes two neighbors in each direction at every scale: below 1 it skips pixels. Labels
    by INTER_NEAREST, which takes the pixel at floor(position / scale), half a pixel to the upper left of the image's.
    A picture of H x W becomes round(H·scale) x round(W·scale) pixels, halves to even. No OpenCV is needed.
    """

    def scales(self, low: Fraction, count: int, step: Fraction) -> list[Fraction]:
        """The grid in floating point: the originals' 0.7 + 1 / 10 lies below 0.8, which moves a few labels."""
        return [Fraction(float(low) + float(index * step)) for index in range(count)]

    def size(self, shape: tuple[int, int], scale: Fraction) -> tuple[int, int]:
        """Height and width of the resized picture."""
        height, width = (max(1, round(side * float(scale))) for side in shape)
        return height, width

    def last_row(self, box: Box, source_height: int, scale: Fraction) -> int:
        """Rows of the source, from the first, that the crop needs."""
        rows, _ = _linear_rows(box.top, box.height, source_height, scale)
        return int(rows.max()) + 1

    def labels(self, labels: Tensor, scale: Fraction, box: Box) -> Tensor:
        """Crop of the resized labels (H, W)."""
        rows = _opencv_nearest(box.top, box.height, labels.shape[0], scale)
        columns = _opencv_nearest(box.left, box.width, labels.shape[1], scale)
        return _take(labels, rows, columns)

    def image(self, image: Tensor, scale: Fraction, box: Box, source_height: int) -> Tensor:
        """Crop of the resized image (3, H, W), uint8; at least `last_row` rows of it. Equal to OpenCV bit by bit."""
        if scale == 1:
            return image[:, box.top : box.top + box.height, box.left : box.left + box.width]
        rows, row_weights = _linear_rows(box.top, box.height, source_height, scale)
        columns, column_weights = _linear_columns(box.left, box.width, image.shape[2], scale)
        first = columns.min()
        pixels = image.permute(1, 2, 0)[:, first : columns.max() + 1].numpy()
        # Each row is handled as one line of red, green, blue, red, ...: that is how decoded pictures lie in memory.
        samples = (3 * (columns - first)[:, :, None] + np.arange(3)).reshape(2, -1)
        sample_weights = column_weights.repeat(3, axis=1)
        crop = np.empty((box.height, 3 * box.width), np.uint8)
        for start in range(0, box.height, BLOCK):
            block = slice(start, start + BLOCK)
            top = rows[:, block].min()
            source = pixels[top : rows[:, block].max() + 1].astype(np.int32, order="C")
            across = _across(source.reshape(len(source), -1), samples, sample_weights)
            crop[block] = _down(across, rows[:, block] - top, row_weights[:, block, None])
        return torch.from_numpy(crop.reshape(box.height, box.width, 3)).permute(2, 0, 1)


INTERPOLATIONS: dict[str, AntialiasedResize | OpenCVResize] = {
    "antialias": AntialiasedResize(),
    "opencv": OpenCVResize(),
}


def _across(source: np.ndarray, samples: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """First direction: the weighted sums of two samples of each row, 8 bits times 11 bits less the last 4."""
    # No index is out of range; with mode="raise" numpy would check each and take into a second buffer.
    left = source.take(samples[0], axis=1, mode="clip")
    right = source.take(samples[1], axis=1, mode="clip")
    left *= weights[0]
    right *= weights[1]
    left += right
    left >>= 4
    return left


def _down(across: np.ndarray, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Second direction: each of the two products loses its last 16 bits, and their sum is rounded by 2."""
    upper = across.take(rows[0], axis=0, mode="clip")
    lower = across.take(rows[1], axis=0, mode="clip")
    upper *= weights[0]
    lower *= weights[1]
    upper >>= 16
    lower >>= 16
    upper += lower
    upper += 2
    upper >>= 2
    return upper


def _take(labels: Tensor, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    # numpy's take needs a quarter of the time of torch's index_select here.
    return torch.from_numpy(labels.numpy().take(rows, axis=0).take(columns, axis=1))


def _source_window(start: int, length: int, source: int, scale: Fraction) -> tuple[int, int, int]:
    """Source interval that is enough to resize to `start .. start + length`, and where `start` lies in its result.

    With scale p/q the sampling grid repeats every p output and q source pixels, so a window that begins at a multiple
    of q is sampled at the very positions the whole image would be.
    """
    margin = math.ceil(max(1, 1 / scale)) + 1  # reach of the antialiased triangle filter, in source pixels
    period = max(0, math.floor(start / scale) - margin) // scale.denominator
    stop = min(source, math.ceil((start + length) / scale) + margin)
    return period * scale.denominator, stop, start - period * scale.numerator


def _containing_pixel(start: int, length: int, scale: Fraction) -> np.ndarray:
    """Source index of each output pixel: the one that contains its center, in exact integer arithmetic."""
    centers = 2 * np.arange(start, start + length) + 1
    return centers * scale.denominator // (2 * scale.numerator)


def _opencv_nearest(start: int, length: int, source: int, scale: Fraction) -> np.ndarray:
    positions = np.arange(start, start + length) * (1 / float(scale))
    return np.minimum(np.floor(positions).astype(np.int64), source - 1)


def _linear_positions(start: int, length: int, scale: Fraction) -> tuple[np.ndarray, np.ndarray]:
    """Left neighbor and distance to it of each output pixel's center, in OpenCV's single precision."""
    centers = ((np.arange(start, start + length) + 0.5) * (1 / float(scale)) - 0.5).astype(np.float32)
    left = np.floor(centers)
    return left.astype(np.int64), centers - left


def _weights(distance: np.ndarray) -> np.ndarray:
    weights = np.stack([np.float32(1) - distance, distance]) * np.float32(1 << COEFFICIENT_BITS)
    return np.rint(weights).astype(np.int32)


def _linear_rows(start: int, length: int, source: int, scale: Fraction) -> tuple[np.ndarray, np.ndarray]:
    """Indices (2, length) of the two source rows of each output row, and their weights."""
    upper, distance = _linear_positions(start, length, scale)
    return np.clip(np.stack([upper, upper + 1]), 0, source - 1), _weights(distance)


def _linear_columns(start: int, length: int, source: int, scale: Fraction) -> tuple[np.ndarray, np.ndarray]:
    """The same for columns, where OpenCV gives a border pixel the whole weight."""
    left, distance = _linear_positions(start, length, scale)
    distance = np.where((left < 0) | (left >= source - 1), np.float32(0), distance)
    left = np.clip(left, 0, source - 1)
    return np.stack([left, np.minimum(left + 1, source - 1)]), _weights(distance)
