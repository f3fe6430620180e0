"""Training crops of rows that arrive one after the other: of a Hub dataset that is never downloaded whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from hf_segkd.data.reading import read_example
from hf_segkd.data.transforms import TrainTransform, check_labels

FOREWORD = 2**20  # stands where the augmentation of rows to train on has the number of its process


class StreamedSet(IterableDataset):
    """The training rows of one process, shuffled and augmented, again and again without an end.

    Files are shuffled, and the next row is drawn from a buffer of those that were read last; each pass has another
    order. Order and pixels depend on the seed, the number of processes and the number of workers, and on nothing else,
    so that reading again from the start arrives at the same place with the same crops. Worker w of W reads other files
    than the rest; there must be at least W.

    Args:
        rows (`datasets.IterableDataset`): Columns `image`, not decoded, `annotation` and perhaps `image_id`; shuffled,
            and split among the processes.
        plain_rows (`datasets.IterableDataset`): The same before that.
        transform ([`~hf_segkd.data.TrainTransform`]): Its `ignore_index` is the one annotations may hold.
        num_labels (`int`): Number of classes K; annotations may hold 0 to K - 1.
        map_annotations (`Callable`): Turns raw values of a batch of rows into train ids.
        seed (`int`, *optional*, defaults to `0`): Seed of the augmentation, >= 0.
        process (`int`, *optional*, defaults to `0`): Number of this process.
        source (`str`, *optional*, defaults to `""`): What the rows come from; a resumed run compares it.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        plain_rows: datasets.IterableDataset,
        transform: TrainTransform,
        num_labels: int,
        map_annotations: Callable[[dict[str, list]], dict[str, list]],
        seed: int = 0,
        process: int = 0,
        source: str = "",
    ):
        self.rows, self.plain_rows = rows, plain_rows
        self.transform, self.num_labels, self.map_annotations = transform, num_labels, map_annotations
        self.seed, self.process, self.source = seed, process, source

    @property
    def files(self) -> int:
        """Files that this process reads; no more workers can share them."""
        return self.rows.num_shards

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        state = (self.process, 0 if worker is None else worker.id)
        number = 0
        for epoch in count():
            self.rows.set_epoch(epoch)
            before = number
            for row in self.rows:
                yield self._item(row, (*state, number))
                number += 1
            if number == before:
                return  # nothing to read, however often it is tried

    def head(self, number: int) -> list[dict[str, Tensor]]:
        """The first rows as they are stored, the same in all processes."""
        rows = islice(self.plain_rows, number)
        return [self._item(row, (FOREWORD, 0, index)) for index, row in enumerate(rows)]

    def _item(self, row: dict[str, Any], state: tuple[int, int, int]) -> dict[str, Tensor]:
        process, worker, number = state
        image_id = row.get("image_id", f"{number} of process {process}, worker {worker}")
        batch = self.map_annotations(
            {"image": [row["image"]], "annotation": [row["annotation"]], "image_id": [image_id]}
        )
        example = read_example({name: values[0] for name, values in batch.items()})
        check_labels(example["annotation"], self.num_labels, self.transform.ignore_index, image_id)
        seed = np.random.SeedSequence([self.seed, *state]).generate_state(1)
        return self.transform(example, torch.Generator().manual_seed(int(seed[0])))
