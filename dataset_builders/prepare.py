"""The command line that every builder shares: prepare a dataset, export it as parquet, push it to the Hub."""

from __future__ import annotations

import argparse
import json
import logging
import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import huggingface_hub
import pyarrow.parquet
from datasets.table import embed_table_storage

from dataset_builders import builder_class, open_dataset
from dataset_builders.completeness import COUNT_FILE
from dataset_builders.opened import OpenedDataset, own_fields
from dataset_builders.stored import BAND_FILE, LABEL_FILE
from dataset_builders.writing import new_folder

if TYPE_CHECKING:
    from hf_segkd.models.bands import Bands

ROWS_PER_FILE = 1000


def main(name: str, description: str, argv: list[str] | None = None) -> None:
    """Prepare the dataset `name` as the command line of its builder's own file says."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    args = vars(_parser(name, description).parse_args(argv))
    data_dir, output, hub_id, num_proc = (args.pop(key) for key in ("data_dir", "output", "push_to_hub", "num_proc"))
    options = {key: value for key, value in args.items() if value is not None}
    try:
        prepare(open_dataset(name, data_dir, **options), output, hub_id, num_proc)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


def prepare(
    dataset: OpenedDataset, output: str | None = None, hub_id: str | None = None, num_proc: int | None = None
) -> None:
    """Prepare all splits of a dataset and say how many images they have.

    Args:
        dataset ([`~dataset_builders.opened.OpenedDataset`]): From [`~dataset_builders.open_dataset`].
        output (`str`, *optional*): New folder for parquet files.
        hub_id (`str`, *optional*): Repository on the Hub to push to, `"user/name"`.
        num_proc (`int`, *optional*): Processes that prepare the data.

    Raises:
        `ValueError`: If `output` holds files already, the dataset is unusable, or the disk is full.
    """
    if output and os.path.isdir(output) and os.listdir(output):
        raise ValueError(f"--output {output} is not empty. Choose a new folder.")
    spec, splits = dataset.spec, dataset.all_splits(num_proc)
    for split, rows in splits.items():
        print(f"{split}: {len(rows)} images, {spec.num_labels} classes")
    if dataset.bands is not None:
        print(dataset.bands)
    if output:
        export(splits, spec.id2label, output, dataset.bands)
        print(f"saved to {output}; load it with datasets.load_dataset, or train with --dataset {output}")
    if hub_id:
        push(splits, spec.id2label, hub_id, dataset.bands)
        print(f"pushed to {hub_id}")


def export(splits: datasets.DatasetDict, id2label: dict[int, str], folder: str, bands: Bands | None = None) -> None:
    """Write parquet files that hold the images themselves, and the class names beside them.

    Args:
        splits (`datasets.DatasetDict`): From [`~dataset_builders.opened.OpenedDataset.all_splits`].
        id2label (`dict[int, str]`): Class names, for `id2label.json`.
        folder (`str`): New folder, for `datasets.load_dataset`; it appears when all is written.
        bands ([`~hf_segkd.models.Bands`], *optional*): What images hold that are not 8-bit RGB, for `bands.json`.

    Raises:
        `ValueError`: If the disk is full; nothing is left of the folder then.
    """
    with new_folder(folder) as unfinished:
        (unfinished / LABEL_FILE).write_text(_json(id2label), encoding="utf-8")
        if bands is not None:
            (unfinished / BAND_FILE).write_text(_bands_text(bands), encoding="utf-8")
        counts = {split: len(rows) for split, rows in splits.items()}
        (unfinished / COUNT_FILE).write_text(json.dumps(counts) + "\n", encoding="utf-8")
        for split, rows in splits.items():
            _write(rows, unfinished, split)


def _write(rows: datasets.Dataset, folder: Path, split: str) -> None:
    count = max(1, -(-len(rows) // ROWS_PER_FILE))
    for number in range(count):
        part = rows.select(range(number * ROWS_PER_FILE, min(len(rows), (number + 1) * ROWS_PER_FILE)))
        path = folder / f"{split}-{number:05d}-of-{count:05d}.parquet"
        with pyarrow.parquet.ParquetWriter(path, part.features.arrow_schema) as writer:
            for batch in part.with_format("arrow").iter(batch_size=50):
                writer.write_table(embed_table_storage(batch))


def push(splits: datasets.DatasetDict, id2label: dict[int, str], hub_id: str, bands: Bands | None = None) -> None:
    """Push all splits to the Hub, with the names of classes and bands beside them."""
    splits.push_to_hub(hub_id)
    files = {LABEL_FILE: _json(id2label)}
    if bands is not None:
        files[BAND_FILE] = _bands_text(bands)
    for name, text in files.items():
        huggingface_hub.upload_file(
            path_or_fileobj=text.encode(), path_in_repo=name, repo_id=hub_id, repo_type="dataset"
        )


def _bands_text(bands: Bands) -> str:
    return json.dumps({"bands": bands.names, "pixel_range": bands.pixel_range}) + "\n"


def _json(id2label: dict[int, str]) -> str:
    return json.dumps(id2label, indent=2) + "\n"


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    """The common options, and the fields of the builder's config."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="folder of the raw files")
    parser.add_argument("--output", help="new folder for parquet files")
    parser.add_argument("--push_to_hub", metavar="ID", help="Hub id, user/name")
    parser.add_argument("--num_proc", type=int, help="processes that prepare the data")
    config = builder_class(name).BUILDER_CONFIG_CLASS
    for field in (field for field in fields(config) if field.name in own_fields(config)):
        options = {"action": "store_true"} if field.type is bool else {"type": _scalar(field.type)}
        parser.add_argument(f"--{field.name}", default=None, help=f"default: {field.default}", **options)
    return parser


def _scalar(annotation) -> type:
    return annotation if annotation in (int, float) else str
