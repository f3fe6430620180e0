"""A dataset that `datasets` opens: a Hub id, a folder of parquet files, a folder of `save_to_disk`."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import datasets
import numpy as np
import PIL.Image
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled

from dataset_builders.class_files import ClassFile, read_class_file
from dataset_builders.completeness import check_counts, check_files, check_parts
from dataset_builders.layouts import chosen_to_validate
from dataset_builders.opened import OpenedDataset, Skipped, checked_config, named_bands, without
from dataset_builders.own_classes import Meaning, own_classes, own_spec
from dataset_builders.raw_splits import RowSplit
from dataset_builders.writing import reason
from hf_segkd.data.label_map import IGNORE_INDEX, LabelMap
from hf_segkd.data.pixels import size_and_turn
from hf_segkd.data.sampling import original_name
from hf_segkd.data.specs import DatasetSpec

if TYPE_CHECKING:
    from hf_segkd.models.bands import Bands

logger = logging.getLogger(__name__)
LABEL_FILE = "id2label.json"
BAND_FILE = "bands.json"  # names and range of images that are not 8-bit RGB


@dataclass
class StoredConfig:
    """What the columns of the dataset are, and what the values of its annotations mean.

    Args:
        labels (`list[str]` or `str`, *optional*): Class names, or a file of them; by default those of a `ClassLabel`
            in the column of the masks, else of the dataset's file `id2label.json`.
        label_map (`dict` or `str`, *optional*): Raw value or color -> class; by default raw values are class ids. See
            [`~dataset_builders.own_classes.Meaning`], also for `ignore_index`, `zero_is_unlabeled` and `value_255`.
        image_column (`str`, *optional*, defaults to `"image"`): Column of the images.
        label_column (`str`, *optional*, defaults to `"annotation"`): Column of the masks; empty ones are unlabeled.
        bands (`list[str]` or `str`, *optional*): Names of the images' channels, or a file of them, where images are
            not 8-bit RGB; by default those of the dataset's file `bands.json`.
        pixel_range (`list[float]`, *optional*): The values that models of 8-bit RGB see as 0 and as 255.
        validation_fraction (`float`, *optional*, defaults to `0.1`): Part of the train split to validate on where
            there is no validation split, between 0 and 1.
        split_seed (`int`, *optional*, defaults to `0`): Chooses which rows these are.

    Raises:
        `ValueError`: If the fraction is not between 0 and 1.
    """

    labels: list[str] | str | None = None
    label_map: dict | str | None = None
    image_column: str = "image"
    label_column: str = "annotation"
    ignore_index: int = 255
    zero_is_unlabeled: bool = False
    value_255: str | None = None
    bands: list[str] | str | None = None
    pixel_range: list[float] | None = None
    validation_fraction: float = 0.1
    split_seed: int = 0

    def __post_init__(self):
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be between 0 and 1, got {self.validation_fraction}.")
        self.meaning = Meaning(self.label_map, self.ignore_index, self.zero_is_unlabeled, self.value_255)


class StoredDataset(OpenedDataset):
    """A dataset that is stored as `datasets` stores them, or that it can read; masks are mapped when they are read."""

    def __init__(self, name: str, data_dir: str | None, cache_dir: str | None, options: dict[str, Any]):
        super().__init__(name, data_dir, cache_dir, checked_config(name, StoredConfig, options))

    @cached_property
    def spec(self) -> DatasetSpec:
        spec = own_spec(self.name, *self._classes)
        from_hub = self.name.count("/") == 1 and not Path(self.name).exists()
        return replace(spec, hub_id=self.name if from_hub else None)

    @property
    def splits(self) -> list[str]:
        return list(self._mapped)

    @property
    def label_map(self) -> LabelMap:
        return self._classes[1]

    @cached_property
    def bands(self) -> Bands | None:
        names, pixel_range = self._band_names
        return named_bands(names, pixel_range, next(iter(self.raw_splits().values()))) if names else None

    @cached_property
    def _band_names(self) -> tuple[list[str] | str | None, list[float] | None]:
        names, pixel_range = self.config.bands, self.config.pixel_range
        path = _file_beside(self.name, BAND_FILE)
        if path is None:
            return names, pixel_range
        known = json.loads(path.read_text(encoding="utf-8"))
        return names or known["bands"], pixel_range or known["pixel_range"]

    def raw_splits(self) -> dict[str, RowSplit]:
        return {split: RowSplit(rows) for split, rows in self._mapped.items()}

    def all_splits(self, num_proc: int | None = None) -> datasets.DatasetDict:
        return self._mapped

    def _rows(self, split: str, skip: Skipped) -> datasets.Dataset:
        return without(self._mapped[split], skip.get(split, ()))

    @cached_property
    def _stored(self) -> datasets.DatasetDict:
        name = self.name
        check_parts(Path(name))
        try:
            if Path(name, "dataset_dict.json").is_file() or Path(name, "state.json").is_file():
                splits = datasets.load_from_disk(name)
            else:
                splits = datasets.load_dataset(name, data_dir=self.data_dir, cache_dir=self.cache_dir)
        except (OSError, RuntimeError, ValueError, BadZipFile, datasets.exceptions.DatasetsError) as error:
            raise ValueError(f"Cannot open the dataset '{name}': {reason(error)}") from error
        splits = splits if isinstance(splits, datasets.DatasetDict) else datasets.DatasetDict({"train": splits})
        if "train" not in splits and "validation" not in splits:
            raise ValueError(f"The dataset '{name}' has the splits {', '.join(splits)}, expected train or validation.")
        check_counts(Path(name), {split: len(rows) for split, rows in splits.items()})
        check_files(name, splits)
        return splits

    @cached_property
    def _classes(self) -> tuple[tuple[str, ...], LabelMap]:
        """Class names, and what raw values mean."""
        config, features = self.config, next(iter(self._stored.values())).features
        if config.labels:
            return own_classes(config.labels, config.meaning)
        known = _names_in(features.get(config.label_column))
        source = f"the column '{config.label_column}'"
        if not known:
            known, source = _names_beside(self.name, int(config.zero_is_unlabeled)), LABEL_FILE
        names, label_map = own_classes(None, config.meaning, ClassFile(known) if known else None)
        others = [name for name, feature in features.items() if _names_in(feature) and name != config.label_column]
        if others and not known:
            logger.warning("Names of the column %s are not those of the masks: left aside.", ", ".join(others))
        if known:
            logger.info("Classes of %s from %s: %s", self.name, source, ", ".join(names))
        return names, label_map

    @cached_property
    def _mapped(self) -> datasets.DatasetDict:
        """Splits with the columns `image`, `annotation` (train ids) and `image_id`."""
        config, map_annotations = self.config, MapAnnotations(self.label_map)
        splits = {split: _columns(rows, split, config) for split, rows in self._stored.items()}
        splits = datasets.DatasetDict(splits)
        if self._band_names[0]:
            splits = splits.cast_column("image", datasets.Image(decode=False))
        if "validation" not in splits:
            splits |= _drawn(splits["train"], config.validation_fraction, config.split_seed)
        return splits.with_transform(map_annotations)


def _names_in(feature: Any) -> tuple[str, ...]:
    """Names of a column of class ids, in lists or not; other columns may name scenes or instances."""
    while isinstance(feature, datasets.List):
        feature = feature.feature
    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()


def _names_beside(name: str, first: int) -> tuple[str, ...]:
    """Names in the file `id2label.json` of the folder or Hub repository; empty when there is none."""
    path = _file_beside(name, LABEL_FILE)
    return () if path is None else read_class_file(path, first).names


def _file_beside(name: str, file: str) -> Path | None:
    """A file of the folder or Hub repository; `None` when there is none."""
    path = Path(name, file)
    if path.is_file():
        return path
    if Path(name).is_dir():
        return None
    try:
        return Path(hf_hub_download(name, file, repo_type="dataset"))
    except (EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled):
        return None


def _columns(rows: datasets.Dataset, split: str, config: StoredConfig) -> datasets.Dataset:
    """The three columns; rows without an `image_id` are numbered."""
    check_columns(rows, split, config)
    if "image_id" not in rows.column_names:
        rows = rows.add_column("image_id", [f"{split}_{index:06d}" for index in range(len(rows))])
    return renamed(rows, config)


def check_columns(rows: datasets.Dataset | datasets.IterableDataset, split: str, config: StoredConfig) -> None:
    """Check that the columns of images and masks are there.

    Raises:
        ValueError: One is not; those that are there are named.
    """
    for option, column in (("image_column", config.image_column), ("label_column", config.label_column)):
        if column not in rows.column_names:
            raise ValueError(
                f"The {split} split has no column '{column}' ({option}); it has {', '.join(rows.column_names)}. "
                f"Give --{option}."
            )


def renamed(
    rows: datasets.Dataset | datasets.IterableDataset, config: StoredConfig
) -> datasets.Dataset | datasets.IterableDataset:
    """The columns `image`, `annotation` and, where rows have one, `image_id`."""
    kept = [config.image_column, config.label_column, "image_id"]
    rows = rows.select_columns([name for name in kept if name in rows.column_names])
    names = {config.image_column: "image", config.label_column: "annotation"}
    # Streamed rows refuse to give a column the name that it has.
    rows = rows.rename_columns({old: new for old, new in names.items() if old != new})
    if isinstance(rows.features["annotation"], datasets.Image):
        # A mode, "L" for instance, would turn palette indices into gray levels.
        rows = rows.cast_column("annotation", datasets.Image())
    return rows


def _drawn(rows: datasets.Dataset, fraction: float, seed: int) -> dict[str, datasets.Dataset]:
    """Train and validation part of the rows; copies that Roboflow augmented, `name.rf.HASH`, stay together."""
    names = [original_name(name) for name in RowSplit(rows).all_names]
    if len(set(names)) == len(names):
        parts = rows.train_test_split(test_size=fraction, seed=seed)
        return {"train": parts["train"], "validation": parts["test"]}
    if len(set(names)) == 1:
        raise ValueError(f"All {len(rows)} rows are copies of '{names[0]}': nothing is left to validate on. Add data.")
    chosen = set(chosen_to_validate(dict.fromkeys(names), fraction, seed))
    return {
        "train": rows.select([index for index, name in enumerate(names) if name not in chosen]),
        "validation": rows.select([index for index, name in enumerate(names) if name in chosen]),
    }


class MapAnnotations:
    """Applied when rows are read, in the workers; a class, so that they can pickle it."""

    def __init__(self, lookup: LabelMap):
        self.lookup = lookup

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        if "annotation" not in batch:
            return batch  # a caller that selected other columns
        triples = zip(batch["image"], batch["annotation"], batch["image_id"], strict=True)
        return batch | {"annotation": [self._train_ids(*triple) for triple in triples]}

    def _train_ids(self, image: PIL.Image.Image | dict[str, Any], annotation, image_id: str) -> PIL.Image.Image:
        if annotation is None:
            return PIL.Image.new("L", _size(image), IGNORE_INDEX)
        raw = annotation if isinstance(annotation, PIL.Image.Image) else np.asarray(annotation)
        return PIL.Image.fromarray(self.lookup(raw, f"The annotation of image '{image_id}'"))


def _size(image: PIL.Image.Image | dict[str, Any]) -> tuple[int, int]:
    """Width and height of an image, decoded or not."""
    if isinstance(image, PIL.Image.Image):
        return image.size
    content = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
    (height, width), _ = size_and_turn(content)
    return width, height
