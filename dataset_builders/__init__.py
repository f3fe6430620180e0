"""From raw folders, or from datasets of others, to the columns `image`, `annotation`, `image_id`."""

import hashlib
import inspect
import logging
import os
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import datasets
from datasets.exceptions import DatasetGenerationError

from dataset_builders.ade20k import ADE20K
from dataset_builders.arguments import DataArguments, data_options
from dataset_builders.camvid import CamVid
from dataset_builders.cityscapes import Cityscapes
from dataset_builders.coco_stuff_164k import CocoStuff164k
from dataset_builders.files import RawFile
from dataset_builders.folder import Folder
from dataset_builders.opened import OpenedConfig, opened_ids, opened_spec, opened_splits
from dataset_builders.pair_builder import PairBuilder, Pairs
from dataset_builders.raw_splits import FileSplit, RowSplit
from dataset_builders.synthetic import Synthetic
from dataset_builders.voc_aug import VocAug
from hf_segkd.data.specs import DatasetSpec
from hf_segkd.values import check_value, did_you_mean

logger = logging.getLogger(__name__)

__all__ = [
    "BUILDERS",
    "DataArguments",
    "data_options",
    "dataset_spec",
    "find_pairs",
    "load_split",
    "load_splits",
    "own_fields",
    "raw_splits",
]

BUILDERS: dict[str, type[datasets.GeneratorBasedBuilder]] = {
    "ade20k": ADE20K,
    "camvid": CamVid,
    "cityscapes": Cityscapes,
    "coco_stuff_164k": CocoStuff164k,
    "folder": Folder,
    "synthetic": Synthetic,
    "voc_aug": VocAug,
}


def load_split(
    name: str,
    data_dir: str | None,
    split: str,
    cache_dir: str | None = None,
    skip: dict[str, list[int]] | None = None,
    **config,
) -> datasets.Dataset:
    """One split of a dataset, prepared on first use and read from the cache afterwards.

    The cache is keyed on the folder, the builder's source, the meaning of the annotation values, and the path, size
    and time of every file used, so files that are added, removed or changed are seen. A split whose number of images
    differs from the published one is reported.

    Args:
        name (`str`): Key of [`BUILDERS`], or what `datasets` opens: a folder, or a Hub id such as `"user/name"`.
        data_dir (`str`, *optional*): Folder of the raw files; `None` for `"synthetic"`.
        split (`str`): `"train"`, `"validation"` or `"test"`; of a builder also a slice such as `"train[:8]"`.
        cache_dir (`str`, *optional*): Where to keep prepared data; the cache of `datasets` by default.
        skip (`dict[str, list[int]]`, *optional*): Positions to leave out, by split, from
            [`~hf_segkd.training.checks.check_data`]. Their files are not opened: all splits are prepared together.
        config: Fields of the builder's config, for instance `num_train` of `"synthetic"`, or of
            [`~dataset_builders.opened.OpenedConfig`].

    Returns:
        `datasets.Dataset`: Columns `image`, `annotation`, `image_id`.

    Raises:
        `ValueError`: Unknown name or split, unusable folder, or annotation values outside the classes.
    """
    base, skip = split.split("[")[0], skip or {}
    if _is_opened(name):
        splits = opened_splits(name, data_dir, _config(name, config), cache_dir)
        _check_split(name, data_dir, base, splits)
        return _without(splits[split], skip.get(split, ()))
    pairs = find_pairs(name, data_dir, **config)
    _check_split(name, data_dir, base, pairs)
    _report_counts(name, {base: pairs[base]}, config)
    skipped = frozenset(pairs[part][index][0] for part, indices in skip.items() for index in indices)
    return _prepare(name, data_dir, pairs, cache_dir, config, skipped=skipped).as_dataset(split=split)


def load_splits(
    name: str, data_dir: str | None, cache_dir: str | None = None, num_proc: int | None = None, **config
) -> datasets.DatasetDict:
    """All splits that exist, as [`load_split`] would load each of them; `num_proc` processes prepare them."""
    if _is_opened(name):
        return opened_splits(name, data_dir, _config(name, config), cache_dir)
    pairs = find_pairs(name, data_dir, **config)
    _report_counts(name, pairs, config)
    if absent := [split for split in BUILDERS[name].counts(_config(name, config)) if split not in pairs]:
        page = BUILDERS[name].PAGE
        logger.warning("%s lacks the %s of %s: prepared without. %s", data_dir, " and ".join(absent), name, page)
    return _prepare(name, data_dir, pairs, cache_dir, config, num_proc).as_dataset()


def dataset_spec(name: str, data_dir: str | None = None, cache_dir: str | None = None, **config) -> DatasetSpec:
    """Classes, colours and splits of a dataset under a configuration.

    Args are those of [`load_split`]. Benchmark datasets have their entry of `DATASETS`; data of one's own gets a spec
    made from its class names.

    Raises:
        `ValueError`: Unknown name, or classes without names.
    """
    if _is_opened(name):
        return opened_spec(name, data_dir, _config(name, config), cache_dir)
    return BUILDERS[name].spec(data_dir, _config(name, config))


def find_pairs(name: str, data_dir: str | None, **config) -> dict[str, Pairs]:
    """Image and annotation files of every split present, found without opening any; empty lists for drawn datasets.

    Raises:
        `ValueError`: Unknown name, or a folder without the expected files (the message says which were looked for).
    """
    return BUILDERS[name].find_pairs(data_dir, _config(name, config)) if not _is_opened(name) else {}


def raw_splits(name: str, data_dir: str | None, **config) -> tuple[dict[str, FileSplit | RowSplit], dict]:
    """What [`load_split`] would read, before anything is decoded or prepared.

    Returns:
        `tuple[dict, dict]`: Splits by name, none for drawn datasets; and raw value (or colour) to train id.
    """
    if _is_opened(name):
        splits = opened_splits(name, data_dir, _config(name, config))
        ids = opened_ids(name, data_dir, _config(name, config))
        return {split: RowSplit(rows) for split, rows in splits.items()}, ids
    if not issubclass(BUILDERS[name], PairBuilder):
        return {}, {}
    root = os.path.abspath(os.path.expanduser(data_dir)) if data_dir else None
    splits = {split: FileSplit(pairs, root) for split, pairs in find_pairs(name, data_dir, **config).items()}
    return splits, BUILDERS[name].label_map(_config(name, config)).ids


def own_fields(config: type) -> list[str]:
    """Options of a builder's config that are not those of every `datasets.BuilderConfig`."""
    common = {field.name for field in fields(datasets.BuilderConfig)}
    return sorted(field.name for field in fields(config) if field.name not in common)


def _is_opened(name: str) -> bool:
    """Whether `datasets` opens it, rather than one of our builders."""
    if name in BUILDERS:
        return False
    if os.path.isdir(name) or name.count("/") == 1:
        return True
    raise ValueError(
        f"Unknown dataset '{name}'.{did_you_mean(name, BUILDERS)} Available: {', '.join(BUILDERS)}; "
        "or a folder, or a Hub id such as user/name."
    )


def _config(name: str, config: dict):
    config_class = BUILDERS[name].BUILDER_CONFIG_CLASS if name in BUILDERS else OpenedConfig
    own = own_fields(config_class)
    for key in config.keys() - set(own):
        raise ValueError(
            f"The dataset '{name}' has no option '{key}'.{did_you_mean(key, own)} "
            f"Available: {', '.join(own) or 'none'}."
        )
    hints = get_type_hints(config_class)
    for key, value in config.items():
        check_value(f"dataset_config.{key}", value, hints[key])
    return config_class(**config)


def _check_split(name: str, data_dir: str | None, split: str, available) -> None:
    if split not in available:
        place = f" in {os.path.abspath(data_dir)}" if data_dir else ""
        raise ValueError(
            f"The dataset '{name}'{place} has no split '{split}'.{did_you_mean(split, available)} "
            f"Available: {', '.join(available)}."
        )


def _report_counts(name: str, pairs: dict[str, Pairs], config: dict) -> None:
    published = BUILDERS[name].counts(_config(name, config))
    for split, items in pairs.items():
        if split in published and len(items) != published[split]:
            logger.warning(
                "The published %s split of %s has %d images, this one has %d: scores are not comparable.",
                *(split, name, published[split], len(items)),
            )


def _without(rows: datasets.Dataset, skipped: list[int]) -> datasets.Dataset:
    return rows.select([index for index in range(len(rows)) if index not in skipped]) if skipped else rows


def _prepare(
    name: str,
    data_dir: str | None,
    pairs: dict[str, Pairs],
    cache_dir: str | None,
    config: dict,
    num_proc: int | None = None,
    skipped: frozenset[RawFile] = frozenset(),
):
    root = os.path.abspath(os.path.expanduser(data_dir)) if data_dir else None
    pairs = {split: [pair for pair in items if pair[0] not in skipped] for split, items in pairs.items()}
    key = _cache_key(BUILDERS[name], root, pairs, _config(name, config))
    builder = BUILDERS[name](data_dir=root, cache_dir=cache_dir, hash=key, **config)
    builder.skipped = skipped
    try:
        builder.download_and_prepare(num_proc=num_proc)
    except DatasetGenerationError as error:
        # Our own messages come wrapped in "An error occurred while generating the dataset".
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise
    return builder


def _cache_key(builder: type, root: str | None, pairs: dict[str, Pairs], config) -> str:
    digest = hashlib.sha256()
    sources = [inspect.getmodule(base) for base in builder.__mro__ if base.__module__.startswith("dataset_builders")]
    for module in (*sources, *builder.CODE):
        digest.update(Path(module.__file__).read_bytes())
    for split, items in pairs.items():
        for file in (file for pair in items for file in pair if file is not None):
            digest.update(f"{split} {file.fingerprint(root)}\n".encode())
    digest.update(builder.annotation_key(config).encode())
    return digest.hexdigest()[:16]
