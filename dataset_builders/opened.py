"""A dataset with its options: classes, splits, files, rows, and what is trained and evaluated on."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_type_hints

import datasets

from dataset_builders.files import read_lines
from hf_segkd.data import DatasetSpec, EvalTransform, SegmentationDataset, TrainTransform, decoded
from hf_segkd.data.label_map import LabelMap
from hf_segkd.data.pixels import advice, read_pixels
from hf_segkd.data.raw import RawSplit, Unreadable, read
from hf_segkd.values import check_value, did_you_mean

if TYPE_CHECKING:
    from hf_segkd.models.bands import Bands

Skipped = Mapping[str, Sequence[int]]


class OpenedDataset(ABC):
    """What [`~dataset_builders.open_dataset`] returns.

    Options are checked when it is made. Everything else happens on first use and is kept: files are listed once, rows
    are prepared once.

    Args:
        name (`str`): The name that it was opened by.
        data_dir (`str`, *optional*): Folder of the raw files.
        cache_dir (`str`, *optional*): Where prepared data is kept; the cache of `datasets` by default.
        config: Its options, checked.
    """

    # Whether its splits are those of a benchmark, which nobody may mend.
    published = False
    # Whether its training rows are read while a run trains: dataset_builders.streamed.
    streamed = False

    def __init__(self, name: str, data_dir: str | None, cache_dir: str | None, config: Any):
        self.name, self.data_dir, self.cache_dir, self.config = name, data_dir, cache_dir, config

    @property
    @abstractmethod
    def spec(self) -> DatasetSpec:
        """Class names, colors and the names of the splits. Benchmarks have their entry of `DATASETS`.

        Raises:
            `ValueError`: If the classes have no names.
        """

    @property
    @abstractmethod
    def splits(self) -> list[str]:
        """Names of the splits that exist.

        Raises:
            `ValueError`: If the folder is unusable, or the dataset cannot be opened.
        """

    @property
    @abstractmethod
    def label_map(self) -> LabelMap | None:
        """What the raw values of the masks mean; `None` where masks are drawn as train ids."""

    @property
    def bands(self) -> Bands | None:
        """Bands and type of images that are not 8-bit RGB; `None` for 8-bit RGB.

        Raises:
            `ValueError`: If the names do not fit, or the image cannot be read.
        """
        return None

    @abstractmethod
    def raw_splits(self) -> dict[str, RawSplit]:
        """Splits before anything is decoded or prepared, by name; none for drawn datasets."""

    @property
    def unused(self) -> list[str]:
        """Pictures that lie in the folder and are in no split."""
        return []

    @abstractmethod
    def all_splits(self, num_proc: int | None = None) -> datasets.DatasetDict:
        """Rows of all splits; `num_proc` processes prepare them."""

    @abstractmethod
    def _rows(self, split: str, skip: Skipped) -> datasets.Dataset:
        """Rows of an existing split, or of a slice of it."""

    def split(self, name: str, skip: Skipped | None = None) -> datasets.Dataset:
        """Rows of one split, prepared on first use and read from the cache afterwards.

        Args:
            name (`str`): `"train"`, `"validation"` or `"test"`; of a builder also a slice such as `"train[:8]"`.
            skip (`dict[str, list[int]]`, *optional*): Positions to leave out, by split, from
                [`~hf_segkd.training.checks.check_data`]. Their files are not opened: a builder prepares all splits
                together, so that each split needs the positions of all.

        Returns:
            `datasets.Dataset`: Columns `image`, `annotation`, `image_id`.

        Raises:
            `ValueError`: Unknown split, unusable folder, or annotation values outside the classes.
        """
        self.check_split(name)
        return self._rows(name, skip or {})

    def check_split(self, name: str) -> None:
        """Check that there is such a split, or the split of such a slice.

        Raises:
            `ValueError`: There is none; the message lists those that exist.
        """
        base = name.split("[")[0]
        if base not in self.splits:
            place = f" in {os.path.abspath(self.data_dir)}" if self.data_dir else ""
            raise ValueError(
                f"The dataset '{self.name}'{place} has no split '{base}'.{did_you_mean(base, self.splits)} "
                f"Available: {', '.join(self.splits)}."
            )

    def training_set(
        self,
        transform: TrainTransform,
        *,
        seed: int = 0,
        skip: Skipped | None = None,
        decoded_dir: str | None = None,
    ) -> SegmentationDataset:
        """The training split, augmented.

        Args:
            transform ([`~hf_segkd.data.TrainTransform`]): Crops, scales and flips.
            seed (`int`, *optional*, defaults to `0`): Seed of the augmentation.
            skip (`dict[str, list[int]]`, *optional*): As for [`split`].
            decoded_dir (`str`, *optional*): Folder for decoded images: [`~hf_segkd.data.decoded`].
        """
        return self._seen_through(transform, self.spec.train_split, seed, skip, decoded_dir)

    def evaluation_set(
        self,
        split: str | None = None,
        *,
        seed: int = 0,
        skip: Skipped | None = None,
        decoded_dir: str | None = None,
    ) -> SegmentationDataset:
        """Whole images of a split, by default the validation split; the other arguments as for [`training_set`]."""
        transform = EvalTransform(self.spec.ignore_index)
        return self._seen_through(transform, split or self.spec.eval_split, seed, skip, decoded_dir)

    def _seen_through(
        self,
        transform: TrainTransform | EvalTransform,
        split: str,
        seed: int,
        skip: Skipped | None,
        decoded_dir: str | None,
    ) -> SegmentationDataset:
        rows = self.split(split, skip)
        if decoded_dir:
            rows = decoded(rows, decoded_dir, self.bands)
        elif isinstance(rows.features["image"], datasets.Image):
            # Whoever decodes would cut 16 bits off without a word.
            rows = rows.cast_column("image", datasets.Image(decode=False))
        return SegmentationDataset(rows, transform, self.spec.num_labels, seed=seed, bands=self.bands)


def checked_config(name: str, config_class: type, options: dict[str, Any]) -> Any:
    """The config that options describe.

    Raises:
        `ValueError`: If it has no such option, or a value is of another type or out of range.
    """
    own = own_fields(config_class)
    for key in options.keys() - set(own):
        raise ValueError(
            f"The dataset '{name}' has no option '{key}'.{did_you_mean(key, own)} "
            f"Available: {', '.join(own) or 'none'}."
        )
    hints = get_type_hints(config_class)
    for key, value in options.items():
        check_value(f"dataset_config.{key}", value, hints[key])
    return config_class(**options)


def own_fields(config_class: type) -> list[str]:
    """Options of a builder's config that are not those of every `datasets.BuilderConfig`."""
    common = {field.name for field in fields(datasets.BuilderConfig)}
    return sorted(field.name for field in fields(config_class) if field.name not in common)


def without(rows: datasets.Dataset, skipped: Iterable[int]) -> datasets.Dataset:
    """Rows without those at some positions."""
    skipped = set(skipped)
    return rows.select([index for index in range(len(rows)) if index not in skipped]) if skipped else rows


def named_bands(names: list[str] | str, pixel_range: list[float] | None, split: RawSplit) -> Bands:
    """Bands of a dataset from the names that were given, or a file with one in each line, and its first image.

    Raises:
        `ValueError`: If there is not one name for each channel, or the image cannot be read.
    """
    from hf_segkd.models.bands import Bands

    names = [names] if isinstance(names, str) else list(names)
    if len(names) == 1 and Path(names[0]).is_file():
        names = [line.strip() for line in read_lines(names[0]) or ()]
    try:
        array = read_pixels(read(split.read_image, 0))
    except Unreadable as error:
        raise ValueError(f"Cannot read {split.names(0)[0]}: {error}.") from None
    count = array.shape[-1]
    if len(names) != count:
        raise ValueError(
            f"The images have {count} band{'s' if count > 1 else ''} of {array.dtype}, and {len(names)} names are "
            f"given: {', '.join(names)}. Name each band, in the order of the files: {advice(count)}."
        )
    value_range = None if pixel_range is None else cast(tuple[float, float], tuple(pixel_range))  # `Bands` counts them
    return Bands(tuple(names), str(array.dtype), value_range)
