"""Mean and standard deviation of each band over a training split."""

from __future__ import annotations

import logging

import numpy as np
from torch.utils.data import Dataset

from hf_segkd.data.parallel import in_threads
from hf_segkd.data.sampling import evenly_spread

logger = logging.getLogger(__name__)
SAMPLE = 1000  # images


def band_statistics(dataset: Dataset, names: tuple[str, ...]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation (C) of the stored values, over all pixels of up to 1000 evenly spread images.

    Sums are kept in float64, of each image around its own mean, so that a small spread on a large offset is not lost.
    A band that is the same everywhere gets 1 as its deviation, and is named in a warning.

    Args:
        dataset (`torch.utils.data.Dataset`): Whole images: items with `pixel_values` (C, H, W).
        names (`tuple[str, ...]`): The bands, for the warning.
    """

    def look(index: int) -> tuple[int, np.ndarray, np.ndarray]:
        pixels = dataset[index]["pixel_values"].flatten(1).numpy().astype(np.float64)
        mean = pixels.mean(axis=1)
        return pixels.shape[1], mean, ((pixels - mean[:, None]) ** 2).sum(axis=1)

    count = 0
    mean = np.zeros(len(names))
    squares = np.zeros(len(names))
    for pixels, image_mean, image_squares in in_threads(look, evenly_spread(len(dataset), SAMPLE), "measuring bands"):
        total = count + pixels
        step = image_mean - mean
        mean = mean + step * pixels / total
        squares = squares + image_squares + step**2 * count * pixels / total
        count = total
    std = np.sqrt(squares / count)
    if constant := [name for name, deviation in zip(names, std, strict=True) if deviation == 0]:
        logger.warning("The same value in all training images, which teaches nothing: band %s.", ", ".join(constant))
    return mean.tolist(), np.where(std == 0, 1.0, std).tolist()
