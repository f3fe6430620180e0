"""Flags of the commands that reach the dataset."""

from argparse import Namespace
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dataset_builders.builders import BUILDERS
from hf_segkd.recipe import load_yaml, mapping_or_text
from hf_segkd.values import did_you_mean

# What `datasets` writes, and folders of pictures that only it reads.
STORED = ("dataset_dict.json", "state.json", "*.parquet", "data/*.parquet", "metadata.jsonl", "*/metadata.jsonl")


@dataclass(kw_only=True)
class DataArguments:
    """Options of a benchmark dataset in `dataset_config`; for data of one's own, what its files or columns are.

    See [`~dataset_builders.folder.FolderConfig`] for `--dataset folder`, [`~dataset_builders.stored.StoredConfig`] for
    a folder or Hub id that `datasets` opens.
    """

    dataset_config: dict | str | None = field(
        default=None, metadata={"help": "Options of the dataset's builder, as in recipes: '{num_train: 100}'."}
    )
    labels: list[str] | None = field(
        default=None, metadata={"help": "Class names of your own data, or a .txt, .csv, .json or .yaml file of them."}
    )
    label_map: dict | str | None = field(
        default=None,
        metadata={
            "help": "Mask values of your own data, from raw value or color to class: '{0: sky, 7: road}', or a file "
            "(.json, .yaml)."
        },
    )
    ignore_index: int | None = field(
        default=None, metadata={"help": "Mask value of unlabeled pixels in your own data (default: 255)."}
    )
    zero_is_unlabeled: bool = field(
        default=False, metadata={"help": "Value 0 of your own masks is unlabeled, 1 the first class."}
    )
    value_255: str | None = field(
        default=None,
        metadata={"help": "In masks of 0 and 255 alone, 255 is the object, or unlabeled.", "metavar": "WORD"},
    )
    data_format: str | None = field(
        default=None,
        metadata={"help": "How your own folder is laid out, where several ways fit: coco, labelme, voc, masks, ..."},
    )
    unlabeled_as: str | None = field(
        default=None, metadata={"help": "In exports of shapes, pixels in no shape are background, or to ignore."}
    )
    turn_masks: bool = field(
        default=False, metadata={"help": "Masks were drawn on photos as stored: turn them as EXIF turns the photos."}
    )
    bands: list[str] | None = field(
        default=None,
        metadata={"help": "Channels of your own images that are not 8-bit RGB: red green blue nir, or a file."},
    )
    pixel_range: list[float] | None = field(
        default=None, metadata={"help": "Values of such images that a model of 8-bit pictures sees as 0 and as 255."}
    )
    full_check: bool = field(
        default=False,
        metadata={"help": "Look at each file of a large folder for what has changed, not at its folders alone."},
    )
    images: str | None = field(
        default=None, metadata={"help": "Pattern of the images in your own folder, such as 'photos/*.jpg'."}
    )
    masks: str | None = field(
        default=None, metadata={"help": "Pattern of the masks in your own folder, such as 'masks/*_mask.png'."}
    )
    image_column: str | None = field(
        default=None, metadata={"help": "Column of the images in a stored dataset (default: image)."}
    )
    label_column: str | None = field(
        default=None, metadata={"help": "Column of the masks in a stored dataset (default: annotation)."}
    )
    validation_fraction: float | None = field(
        default=None,
        metadata={"help": "Part of your own data to validate on where it has no validation split (default: 0.1)."},
    )
    split_seed: int | None = field(
        default=None, metadata={"help": "Seed that chooses the validation part of your own data (default: 0)."}
    )


def data_options(arguments: DataArguments | Namespace) -> dict[str, Any]:
    """What was given of [`DataArguments`], as options of [`~dataset_builders.open_dataset`].

    Raises:
        `ValueError`: If `dataset_config` is a text that is no mapping of options.
    """
    flags = {option.name: getattr(arguments, option.name) for option in fields(DataArguments)}
    config = flags.pop("dataset_config") or {}
    if isinstance(config, str):
        config = load_yaml(config)
    if isinstance(flags["label_map"], str):
        flags["label_map"] = mapping_or_text(flags["label_map"])
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise ValueError(f"dataset_config must be a mapping of options such as '{{seed: 1}}', got {config!r}.")
    return config | {name: value for name, value in flags.items() if value is not None and value is not False}


def find_data(arguments: Any) -> None:
    """Set `dataset` and `data_dir` of parsed arguments to what their `data` names, if it was given.

    Raises:
        `ValueError`: As [`find_dataset`].
    """
    if arguments.data is None:
        return
    arguments.dataset, folder = find_dataset(arguments.data)
    arguments.data_dir = folder or arguments.data_dir


def find_dataset(data: str) -> tuple[str, str | None]:
    """What `--data` names, as `--dataset` and `--data_dir` would.

    Args:
        data (`str`): A folder: of images and masks, or written by `datasets`. Else a builder's name, or a Hub id.

    Raises:
        `ValueError`: If it is none of them.
    """
    folder = Path(data).expanduser()
    if folder.is_dir():
        stored = any(True for pattern in STORED for _ in folder.glob(pattern))
        return (str(folder), None) if stored else ("folder", data)
    if data in BUILDERS and data != "folder":
        return data, None
    if data.count("/") == 1 and not data.startswith((".", "/", "~")):
        return data, None
    raise ValueError(
        f"There is no folder '{data}'.{did_you_mean(data, BUILDERS)} --data takes your own folder, a Hub id such as "
        f"user/name, or one of {', '.join(name for name in BUILDERS if name != 'folder')}."
    )
