"""Is one model better than another on these images, or were they lucky images?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CHUNK = 1000


@dataclass(frozen=True)
class Difference:
    """IoU of one model minus that of another, with a bootstrap interval over images; all fractions.

    Args:
        mean_iou (`tuple[float, float, float]`): Difference, lower and upper end of the interval.
        per_class_iou (`np.ndarray` of shape `(K, 3)`): The same for each class, NaN where a class is absent.
        images (`int`): Number of images.
        level (`float`): Probability that the interval covers.
        samples (`int`): Number of resamples.
    """

    mean_iou: tuple[float, float, float]
    per_class_iou: np.ndarray
    images: int
    level: float
    samples: int


def paired_bootstrap(
    first: Tensor, second: Tensor, samples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Difference:
    """Compare two models on the same images: percentile interval of `first - second` over resampled images.

    Each resample draws as many images as there are, with replacement, and takes the same images for both models, so
    that images which are hard for both cancel.

    Args:
        first, second (`torch.Tensor` of shape `(N, 2, K)`): Intersections and unions of each image and class, in
            pixels, the images in one order.
        samples (`int`, *optional*, defaults to `10000`): Number of resamples.
        level (`float`, *optional*, defaults to `0.95`): Coverage of the interval, between 0 and 1.
        seed (`int`, *optional*, defaults to `0`): Seed of the resampling.

    Raises:
        ValueError: If the two differ in shape or there are fewer than two images.
    """
    if first.shape != second.shape or len(first) < 2:
        raise ValueError(
            f"Two models are compared on the same images, at least two: got {tuple(first.shape)} and "
            f"{tuple(second.shape)} (images, 2, classes)."
        )
    generator = np.random.default_rng(seed)
    both = torch.stack([first, second]).double()  # (2, N, 2, K)
    images = len(first)
    differences = []
    for start in range(0, samples, CHUNK):
        draws = generator.multinomial(images, np.full(images, 1 / images), size=min(CHUNK, samples - start))
        counts = torch.einsum("sn,mnxk->smxk", torch.from_numpy(draws).double(), both)
        differences.append(_differences(counts))
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.nanquantile(torch.cat(differences), edges, dim=0)
    table = torch.stack([_differences(both.sum(dim=1)[None])[0], low, high], dim=1).numpy()
    return Difference(tuple(table[-1].tolist()), table[:-1], images, level, samples)


def paired_gain(
    method: Tensor, baseline: Tensor, samples: int = 10_000, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Mean gain in mIoU of one method over another, several seeds each: value and percentile interval, fractions.

    Runs of one seed are compared with each other; each resample draws seeds and images anew, both with replacement
    and the same for both methods. So the interval holds the luck of the images and, as far as so few runs show it,
    that of the seeds: with two or three seeds it is too narrow rather than too wide.

    Args:
        method, baseline (`torch.Tensor` of shape `(S, N, 2, K)`): Intersections and unions of each seed, image and
            class, in pixels; seeds and images in one order.
        samples (`int`, *optional*, defaults to `10000`): Number of resamples.
        level (`float`, *optional*, defaults to `0.95`): Coverage of the interval, between 0 and 1.
        seed (`int`, *optional*, defaults to `0`): Seed of the resampling.

    Raises:
        ValueError: If the two differ in shape or there are fewer than two images.
    """
    if method.shape != baseline.shape or method.shape[1] < 2:
        raise ValueError(
            f"Two methods are compared on the same seeds and at least two images, got {tuple(method.shape)} and "
            f"{tuple(baseline.shape)} (seeds, images, 2, classes)."
        )
    generator = np.random.default_rng(seed)
    both = torch.stack([method, baseline], dim=1).double()  # (S, 2 models, N, 2, K)
    seeds, _, images = both.shape[:3]
    gains = []
    for start in range(0, samples, CHUNK):
        count = min(CHUNK, samples - start)
        draws = generator.multinomial(images, np.full(images, 1 / images), size=count)
        counts = torch.einsum("sn,rmnxk->rsmxk", torch.from_numpy(draws).double(), both)
        each = torch.stack([_differences(x)[:, -1] for x in counts], dim=1)  # (count, S)
        shares = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=count) / seeds
        gains.append((each * torch.from_numpy(shares)).sum(dim=1))
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(torch.cat(gains), edges).tolist()
    return _differences(both.sum(dim=2))[:, -1].mean().item(), low, high


def _differences(counts: Tensor) -> Tensor:
    """Per-class and, last, mean difference (S, K + 1) of IoUs from counts (S, 2 models, 2, K)."""
    iou = counts[:, :, 0] / counts[:, :, 1]
    iou = torch.cat([iou, iou.nanmean(dim=-1, keepdim=True)], dim=-1)
    return iou[:, 0] - iou[:, 1]
