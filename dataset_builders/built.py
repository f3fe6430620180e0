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
from dataset_builders.listing import Listing, Pairs, files_state, load_listing, save_listing
from dataset_builders.opened import OpenedDataset, Skipped, checked_config, named_bands
from dataset_builders.pair_builder import PairBuilder
from dataset_builders.raw_splits import FileSplit
from dataset_builders.writing import is_full, reason
from hf_segkd.data import DatasetSpec
from hf_segkd.data.label_map import LabelMap

if TYPE_CHECKING:
    from hf_segkd.models.bands import Bands

logger = logging.getLogger(__name__)
MANY = 2000  # images from which on all cores prepare; starting processes takes seconds


class BuiltDataset(OpenedDataset):
    """A dataset of [`~dataset_builders.BUILDERS`].

    The cache is keyed on the folder, the builder's source, the meaning of the annotation values, and the path, size
    and time of every file used, so files that are added, removed or changed are seen; of large folders that were
    listed before, the folders are looked at, see [`~dataset_builders.listing`]. A split whose number of images differs
    from the published one is reported.
    """

    def __init__(self, name: str, data_dir: str | None, cache_dir: str | None, options: dict[str, Any]):
        self.builder_class = builder_class(name)
        self.full_check = options.get("full_check", False)
        options = {key: value for key, value in options.items() if key != "full_check"}
        config = checked_config(name, self.builder_class.BUILDER_CONFIG_CLASS, options)
        super().__init__(name, data_dir, cache_dir, config)
        self.options, self.published = options, name != "folder"
        self._root = os.path.abspath(os.path.expanduser(data_dir)) if data_dir else None
        self.config.data_dir = self._root
        self._prepared: dict[frozenset[RawFile], datasets.DatasetBuilder] = {}

    @cached_property
    def spec(self) -> DatasetSpec:
        return self._looked_at.spec(self.data_dir, self.config)

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
        if self._listing is not None:
            return self._listing.pairs
        return self._looked_at.find_pairs(self.data_dir, self.config)

    @cached_property
    def _looked_at(self) -> type[PairBuilder]:
        """The builder, which knows what an earlier run listed."""
        if self._listing is not None:
            self.builder_class.use_listing(self.config, self._listing)
        return self.builder_class

    @cached_property
    def _listing(self) -> Listing | None:
        """What an earlier run listed in a large folder, where no folder has changed since."""
        if self._root is None or self._is_drawn or self.full_check:
            return None
        return load_listing(self._listing_file, self._root)

    @cached_property
    def _listing_file(self) -> Path:
        """Where the listing is kept: beside the prepared rows, named by the folder, the options and the code."""
        place = Path(self.cache_dir or datasets.config.HF_DATASETS_CACHE) / "hf_segkd_listings"
        text = f"{self.name} {self._root} {sorted(self.options.items())} {self._code()}"
        return place / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

    @cached_property
    def label_map(self) -> LabelMap | None:
        return None if self._is_drawn else self._looked_at.label_map(self.config)

    @property
    def _is_drawn(self) -> bool:
        """Whether images come from no files at all."""
        return not issubclass(self.builder_class, PairBuilder)

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
            pairs = self._files
            if skipped:
                pairs = {split: [pair for pair in items if pair[0] not in skipped] for split, items in pairs.items()}
            key = self._cache_key(pairs)
            builder = self.builder_class(data_dir=self._root, cache_dir=self.cache_dir, hash=key, **self.options)
            builder.pairs = pairs
            builder.config = self.config  # which has read the class names already
            if num_proc is None and sum(map(len, pairs.values())) >= MANY:
                num_proc = os.cpu_count()
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
        whole = pairs == self._files
        if whole and self._listing is not None:
            state = self._listing.state
        else:
            state = files_state(pairs, self._root)
            if whole and not self._is_drawn and not self._looked_at.draws_masks(self.config):
                save_listing(self._listing_file, self._root, Listing(pairs, self.unused, state))
        text = f"{self._code()} {state} {self._looked_at.annotation_key(self.config)}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _code(self) -> str:
        """Text that changes with the code that rows depend on."""
        digest = hashlib.sha256()
        bases = [base for base in self.builder_class.__mro__ if base.__module__.startswith("dataset_builders")]
        for module in (*map(inspect.getmodule, bases), *self.builder_class.CODE):
            digest.update(Path(module.__file__).read_bytes())
        return digest.hexdigest()
