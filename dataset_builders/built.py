"""A dataset that one of our builders makes from raw files, or draws."""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from datasets.exceptions import DatasetGenerationError

from dataset_builders.builders import builder_class
from dataset_builders.files import RawFile
from dataset_builders.opened import OpenedDataset, Skipped, checked_config, named_bands
from dataset_builders.pair_builder import PairBuilder, Pairs
from dataset_builders.raw_splits import FileSplit
from dataset_builders.writing import is_full, reason
from hf_segkd.data import DatasetSpec
from hf_segkd.data.label_map import LabelMap

if TYPE_CHECKING:
    from hf_segkd.models.bands import Bands

logger = logging.getLogger(__name__)


class BuiltDataset(OpenedDataset):
    """A dataset of [`~dataset_builders.BUILDERS`].

    The cache is keyed on the folder, the builder's source, the meaning of the annotation values, and the path, size
    and time of every file used, so files that are added, removed or changed are seen. A split whose number of images
    differs from the published one is reported.
    """

    def __init__(self, name: str, data_dir: str | None, cache_dir: str | None, options: dict[str, Any]):
        self.builder_class = builder_class(name)
        config = checked_config(name, self.builder_class.BUILDER_CONFIG_CLASS, options)
        super().__init__(name, data_dir, cache_dir, config)
        self.options, self.published = options, name != "folder"
        self._root = os.path.abspath(os.path.expanduser(data_dir)) if data_dir else None
        self.config.data_dir = self._root
        self._prepared: dict[frozenset[RawFile], datasets.DatasetBuilder] = {}

    @cached_property
    def spec(self) -> DatasetSpec:
        return self.builder_class.spec(self.data_dir, self.config)

    @property
    def splits(self) -> list[str]:
        return list(self._files)

    def files(self) -> dict[str, Pairs]:
        """Image and annotation files by split, found without opening any; empty lists for drawn datasets.

        Raises:
            `ValueError`: If the folder lacks the expected files; the message says which were looked for.
        """
        return self._files

    @cached_property
    def _files(self) -> dict[str, Pairs]:
        return self.builder_class.find_pairs(self.data_dir, self.config)

    @cached_property
    def label_map(self) -> LabelMap | None:
        drawn = not issubclass(self.builder_class, PairBuilder)
        return None if drawn else self.builder_class.label_map(self.config)

    @cached_property
    def bands(self) -> Bands | None:
        if self.label_map is None or not self.builder_class.has_bands(self.config):
            return None
        return named_bands(self.config.bands, self.config.pixel_range, next(iter(self.raw_splits().values())))

    def raw_splits(self) -> dict[str, FileSplit]:
        if self.label_map is None:
            return {}
        turn = self.builder_class.turns_masks(self.config)
        return {split: FileSplit(pairs, self._root, turn) for split, pairs in self._files.items()}

    @property
    def unused(self) -> list[str]:
        return self.builder_class.unused(self.config) if self.label_map is not None else []

    def all_splits(self, num_proc: int | None = None) -> datasets.DatasetDict:
        for split in self._files:
            self._report_count(split)
        if absent := [split for split in self.builder_class.counts(self.config) if split not in self._files]:
            page = self.builder_class.PAGE
            missing = " and ".join(absent)
            logger.warning("%s lacks the %s of %s: prepared without. %s", self.data_dir, missing, self.name, page)
        return self._prepare(frozenset(), num_proc).as_dataset()

    def _rows(self, split: str, skip: Skipped) -> datasets.Dataset:
        self._report_count(split.split("[")[0])
        skipped = frozenset(self._files[part][index][0] for part, indices in skip.items() for index in indices)
        return self._prepare(skipped).as_dataset(split=split)

    def _report_count(self, split: str) -> None:
        published, found = self.builder_class.counts(self.config).get(split), len(self._files[split])
        if published not in (None, found):
            logger.warning(
                "The published %s split of %s has %d images, this one has %d: scores are not comparable.",
                *(split, self.name, published, found),
            )

    def _prepare(self, skipped: frozenset[RawFile], num_proc: int | None = None) -> datasets.DatasetBuilder:
        if skipped not in self._prepared:
            pairs = {split: [pair for pair in items if pair[0] not in skipped] for split, items in self._files.items()}
            key = self._cache_key(pairs)
            builder = self.builder_class(data_dir=self._root, cache_dir=self.cache_dir, hash=key, **self.options)
            builder.pairs = pairs
            try:
                builder.download_and_prepare(num_proc=num_proc)
            except DatasetGenerationError as error:
                # Our own messages come wrapped in "An error occurred while generating the dataset".
                if isinstance(error.__cause__, ValueError):
                    raise error.__cause__ from None
                if is_full(error):
                    raise ValueError(f"Cannot prepare '{self.name}': {reason(error)}") from error
                raise
            self._prepared[skipped] = builder
        return self._prepared[skipped]

    def _cache_key(self, pairs: dict[str, Pairs]) -> str:
        digest = hashlib.sha256()
        bases = [base for base in self.builder_class.__mro__ if base.__module__.startswith("dataset_builders")]
        for module in (*map(inspect.getmodule, bases), *self.builder_class.CODE):
            digest.update(Path(module.__file__).read_bytes())
        for split, items in pairs.items():
            for file in (file for pair in items for file in pair if file is not None):
                digest.update(f"{split} {file.fingerprint(self._root)}\n".encode())
        digest.update(self.builder_class.annotation_key(self.config).encode())
        return digest.hexdigest()[:16]
