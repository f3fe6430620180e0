"""Images without labels, from wherever they lie."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

import datasets

from dataset_builders.files import SKIPPED, SUFFIXES

WILDCARDS = "*?["


def unlabeled_images(sources: str | Sequence[str]) -> datasets.Dataset:
    """Find images without labels, for the teacher.

    Args:
        sources (`str` or `list[str]`): Each a folder, with all that lies below it; a pattern such as
            `"photos/**/*.jpg"`; or a folder or Hub id that `datasets` opens, all splits of it.

    Returns:
        `datasets.Dataset`: Columns `image`, `image_id`. Files are read when they are needed, not copied.

    Raises:
        `ValueError`: If a source has no image, or cannot be opened.
    """
    sources = [sources] if isinstance(sources, str) else list(sources)
    return datasets.concatenate_datasets([_source(source) for source in sources])


def _source(source: str) -> datasets.Dataset:
    expanded = os.path.expanduser(source)
    if any(character in expanded for character in WILDCARDS):
        return _files(source, sorted(glob.glob(expanded, recursive=True)))
    folder = Path(expanded)
    stored = (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
    if folder.is_dir() and not stored:
        return _files(source, sorted(str(path) for path in folder.rglob("*")))
    if stored or source.count("/") == 1:
        return _stored(source, stored)
    raise ValueError(f"unlabeled: there is no folder '{source}'. Give a folder, a pattern in quotes, or a Hub id.")


def _files(source: str, paths: list[str]) -> datasets.Dataset:
    images = [path for path in paths if _is_image(Path(path))]
    if not images:
        kinds = ", ".join(sorted(SUFFIXES))
        raise ValueError(f"unlabeled: no images in '{source}' (looked for {kinds}).")
    rows = datasets.Dataset.from_dict({"image": images, "image_id": images})
    return rows.cast_column("image", datasets.Image())


def _is_image(path: Path) -> bool:
    hidden = any(part.startswith(".") or part.lower() in SKIPPED for part in path.parts[1:])
    return path.suffix.lower() in SUFFIXES and not hidden and path.is_file()


def _stored(source: str, on_disk: bool) -> datasets.Dataset:
    try:
        splits = datasets.load_from_disk(source) if on_disk else datasets.load_dataset(source)
    except (OSError, RuntimeError, ConnectionError, datasets.exceptions.DatasetNotFoundError, ValueError) as error:
        raise ValueError(f"unlabeled: cannot open '{source}': {error}") from error
    splits = splits if isinstance(splits, datasets.DatasetDict) else datasets.DatasetDict({"train": splits})
    parts = []
    for split, rows in splits.items():
        columns = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
        if not columns:
            raise ValueError(f"unlabeled: the {split} split of '{source}' has no column of images.")
        column = "image" if "image" in columns else columns[0]
        rows = rows.select_columns([column]).rename_column(column, "image") if column != "image" else rows
        rows = rows.select_columns(["image"]).cast_column("image", datasets.Image())
        parts.append(rows.add_column("image_id", [f"{source} {split} {index}" for index in range(len(rows))]))
    return datasets.concatenate_datasets(parts)
