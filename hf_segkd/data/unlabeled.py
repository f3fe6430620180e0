"""Images without labels beside those that have some: rows, and how many of each a batch gets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import torch
from torch.utils.data import Sampler

from hf_segkd.data.reading import StoredImage


class UnlabeledRows(Sequence):
    """Images whose annotation is `ignore_index` everywhere, which is what losses leave out.

    Args:
        rows (`datasets.Dataset`): Columns `image`, `image_id`.
        ignore_index (`int`): Value of pixels that are not labeled.
    """

    column_names = ("image", "annotation", "image_id")

    def __init__(self, rows: datasets.Dataset, ignore_index: int):
        self.rows = rows.cast_column("image", datasets.Image(decode=False))
        self.ignore_index = ignore_index

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        image = StoredImage(row["image"])
        dtype = torch.uint8 if 0 <= self.ignore_index <= 255 else torch.int64
        annotation = torch.full(image.shape[1:], self.ignore_index, dtype=dtype)
        return {"image": image, "annotation": annotation, "image_id": row["image_id"]}


class JoinedRows(Sequence):
    """Rows of one source after those of another.

    Args:
        labeled, unlabeled: Rows with the columns `image`, `annotation`, `image_id`.
    """

    column_names = ("image", "annotation", "image_id")

    def __init__(self, labeled: Sequence, unlabeled: Sequence):
        self.labeled = labeled
        self.unlabeled = unlabeled

    def __len__(self) -> int:
        return len(self.labeled) + len(self.unlabeled)

    def __getitem__(self, index: int) -> dict[str, Any]:
        count = len(self.labeled)
        return self.labeled[index] if index < count else self.unlabeled[index - count]


class MixedSampler(Sampler[int]):
    """Shuffled indices in which every batch has the same numbers of labeled and unlabeled images.

    An epoch shows every image of both kinds at least once; the kind that is used up first is shuffled again and goes
    on. What is drawn depends on seed and epoch alone.

    Args:
        labeled (`int`): Number of labeled images, which come first in the dataset.
        unlabeled (`int`): Number of the others.
        batch_size (`int`): Images in a batch of one process, at least 2.
        ratio (`float`): Unlabeled images for each labeled one, > 0; rounded to what the batch allows, at least one of
            each kind.
        seed (`int`, *optional*, defaults to `0`): Seed of the order.

    Raises:
        `ValueError`: If there are none of one kind, or the batch has no room for both.
    """

    def __init__(self, labeled: int, unlabeled: int, batch_size: int, ratio: float, seed: int = 0):
        if min(labeled, unlabeled) < 1:
            raise ValueError(f"unlabeled_ratio mixes two kinds of images, got {labeled} labeled, {unlabeled} not.")
        if batch_size < 2:
            raise ValueError(f"unlabeled_ratio needs room for both kinds: a batch of 2 or more, got {batch_size}.")
        if not ratio > 0:
            raise ValueError(f"unlabeled_ratio must be positive, got {ratio}.")
        self.counts = (labeled, unlabeled)
        first = min(max(round(batch_size / (1 + ratio)), 1), batch_size - 1)
        self.shares = (first, batch_size - first)
        self.batches = max(-(-count // share) for count, share in zip(self.counts, self.shares, strict=True))
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches * sum(self.shares)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        labeled = self._endless(0, self.counts[0], generator)
        unlabeled = self._endless(self.counts[0], self.counts[1], generator)
        for _ in range(self.batches):
            for indices, share in zip((labeled, unlabeled), self.shares, strict=True):
                for _ in range(share):
                    yield next(indices)

    @staticmethod
    def _endless(start: int, count: int, generator: torch.Generator) -> Iterator[int]:
        while True:
            for index in torch.randperm(count, generator=generator).tolist():
                yield start + index
