"""Builders from raw folders to the columns `image`, `annotation`, `image_id`, and one way to load their splits."""

import hashlib
import inspect
import os
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path

import datasets
from datasets.exceptions import DatasetGenerationError

from dataset_builders.camvid import CamVid
from dataset_builders.synthetic import Synthetic

BUILDERS: dict[str, type[datasets.GeneratorBasedBuilder]] = {"camvid": CamVid, "synthetic": Synthetic}


def load_split(
    name: str, data_dir: str | None, split: str, cache_dir: str | None = None, **config
) -> datasets.Dataset:
    """One split of a dataset, prepared on first use and read from the cache afterwards.

    The cache is keyed on the folder, the builder's source and the path, size and time of every file used, so files
    that are added, removed or changed are seen.

    Args:
        name (`str`): Key of [`BUILDERS`].
        data_dir (`str`, *optional*): Folder of the raw files; `None` for `"synthetic"`.
        split (`str`): `"train"`, `"validation"` or `"test"`; a slice such as `"train[:8]"` works too.
        cache_dir (`str`, *optional*): Where to keep prepared data; the cache of `datasets` by default.
        config: Fields of the builder's config, for instance `num_train` of `"synthetic"`.

    Returns:
        `datasets.Dataset`: Columns `image`, `annotation`, `image_id`.

    Raises:
        `ValueError`: Unknown name or split, unusable folder, or annotation values outside the classes.
    """
    pairs = find_pairs(name, data_dir)
    base = split.split("[")[0]
    if base not in pairs:
        place = f" in {os.path.abspath(data_dir)}" if data_dir else ""
        raise ValueError(
            f"The dataset '{name}'{place} has no split '{base}'.{_suggest(base, pairs)} Available: {', '.join(pairs)}."
        )
    return _prepare(name, data_dir, pairs, cache_dir, config).as_dataset(split=split)


def load_splits(name: str, data_dir: str | None, cache_dir: str | None = None, **config) -> datasets.DatasetDict:
    """All splits that exist, as [`load_split`] would load each of them."""
    return _prepare(name, data_dir, find_pairs(name, data_dir), cache_dir, config).as_dataset()


def find_pairs(name: str, data_dir: str | None) -> dict[str, list[tuple[Path, Path]]]:
    """Image and annotation files of every split present, found without opening any; empty lists for drawn datasets.

    Raises:
        `ValueError`: Unknown name, or a folder without the expected files (the message says which were looked for).
    """
    if name not in BUILDERS:
        raise ValueError(f"Unknown dataset '{name}'.{_suggest(name, BUILDERS)} Available: {', '.join(BUILDERS)}.")
    return BUILDERS[name].find_pairs(data_dir)


def _suggest(word: str, words) -> str:
    close = get_close_matches(word, list(words), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def _prepare(name: str, data_dir: str | None, pairs: dict, cache_dir: str | None, config: dict):
    known = {field.name for field in fields(BUILDERS[name].BUILDER_CONFIG_CLASS)}
    own = sorted(known - {field.name for field in fields(datasets.BuilderConfig)})
    for key in config.keys() - set(own):
        raise ValueError(
            f"The dataset '{name}' has no option '{key}'.{_suggest(key, own)} Available: {', '.join(own) or 'none'}."
        )
    root = os.path.abspath(os.path.expanduser(data_dir)) if data_dir else None
    key = _cache_key(BUILDERS[name], root, pairs)
    builder = BUILDERS[name](data_dir=root, cache_dir=cache_dir, hash=key, **config)
    try:
        builder.download_and_prepare()
    except DatasetGenerationError as error:
        # Our own messages come wrapped in "An error occurred while generating the dataset".
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise
    return builder


def _cache_key(builder: type, root: str | None, pairs: dict[str, list[tuple[Path, Path]]]) -> str:
    digest = hashlib.sha256(Path(inspect.getfile(builder)).read_bytes())
    for split, files in pairs.items():
        for path in (path for pair in files for path in pair):
            status = path.stat()
            digest.update(f"{split} {os.path.relpath(path, root)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
