"""Flags of the scripts that reach the dataset's builder."""

import json
from argparse import Namespace
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(kw_only=True)
class DataArguments:
    """Options of a benchmark dataset in `dataset_config`; for data of one's own, what its files or columns are.

    See [`~dataset_builders.folder.FolderConfig`] for `--dataset folder`, [`~dataset_builders.opened.OpenedConfig`] for
    a folder or Hub id that `datasets` opens.
    """

    dataset_config: dict | str | None = field(default=None, metadata={"help": "Options of the dataset's builder."})
    labels: list[str] | None = field(default=None, metadata={"help": "Own classes: names, or a .txt or .json file."})
    label_map: dict | str | None = field(
        default=None, metadata={"help": "Own classes: raw value or colour -> class, or a .json file of that."}
    )
    ignore_index: int | None = field(default=None, metadata={"help": "Own data: raw value of unlabelled pixels."})
    images: str | None = field(default=None, metadata={"help": "Own folder: pattern like 'photos/*.jpg'."})
    masks: str | None = field(default=None, metadata={"help": "Own folder: pattern like 'masks/*_mask.png'."})
    image_column: str | None = field(default=None, metadata={"help": "Opened dataset: column of the images."})
    label_column: str | None = field(default=None, metadata={"help": "Opened dataset: column of the masks."})
    validation_fraction: float | None = field(
        default=None, metadata={"help": "Own data without a validation split: part to validate on."}
    )
    split_seed: int | None = field(default=None, metadata={"help": "Own data: chooses which part that is."})


def data_options(arguments: DataArguments | Namespace) -> dict[str, Any]:
    """What was given of [`DataArguments`], as options of [`~dataset_builders.load_split`].

    Raises:
        `ValueError`: If `dataset_config` is a text that is no JSON mapping.
    """
    flags = {option.name: getattr(arguments, option.name) for option in fields(DataArguments)}
    config = flags.pop("dataset_config") or {}
    if isinstance(config, str):
        try:
            config = dict(json.loads(config))
        except (json.JSONDecodeError, TypeError, ValueError):
            raise ValueError(f"dataset_config is no JSON mapping such as '{{\"seed\": 1}}': {config}") from None
    return config | {name: value for name, value in flags.items() if value is not None}
