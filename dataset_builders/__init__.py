"""From raw folders, or from stored datasets of others, to the columns `image`, `annotation`, `image_id`."""

import os
from typing import TYPE_CHECKING, Any

from dataset_builders.arguments import DataArguments, data_options
from dataset_builders.builders import BUILDERS, builder_class
from hf_segkd.values import did_you_mean

if TYPE_CHECKING:
    from dataset_builders.opened import OpenedDataset
    from hf_segkd.data.specs import DatasetSpec

    DATASETS: dict[str, DatasetSpec]

__all__ = [
    "BUILDERS",
    "DATASETS",
    "DataArguments",
    "builder_class",
    "data_options",
    "open_dataset",
    "open_from_arguments",
]


def __getattr__(name: str) -> "dict[str, DatasetSpec]":
    """`DATASETS`: classes, colors and license of every published dataset, as its builder declares them."""
    if name != "DATASETS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    specs = {key: builder_class(key).SPEC for key in BUILDERS}
    return {key: spec for key, spec in specs.items() if spec is not None}


def open_dataset(
    name: str,
    data_dir: str | None = None,
    *,
    cache_dir: str | None = None,
    streaming: bool = False,
    **options: Any,
) -> "OpenedDataset":
    """Open a dataset by its name; files are looked at when they are asked for, and only once.

    Args:
        name (`str`): Key of [`BUILDERS`], or what `datasets` opens: a folder, or a Hub id such as `"user/name"`.
        data_dir (`str`, *optional*): Folder of the raw files; `None` for `"synthetic"`.
        cache_dir (`str`, *optional*): Where to keep prepared data; the cache of `datasets` by default.
        streaming (`bool`, *optional*, defaults to `False`): Read the training rows while a run trains, and keep none:
            [`~dataset_builders.streamed.StreamedDataset`].
        options: Fields of the builder's config, for instance `num_train` of `"synthetic"`, or of
            [`~dataset_builders.stored.StoredConfig`].

    Returns:
        [`~dataset_builders.opened.OpenedDataset`]: Its classes (`spec`), `splits`, files and rows.

    Raises:
        `ValueError`: Unknown name, an option that the dataset does not have or take, or nothing that can be streamed.
    """
    # `datasets` takes half a second to import: --help does without.
    from dataset_builders.built import BuiltDataset
    from dataset_builders.stored import StoredDataset
    from dataset_builders.streamed import StreamedDataset

    if name in BUILDERS and streaming:
        raise ValueError(
            "--streaming reads what `datasets` stores, a Hub id or a folder of parquet files; "
            f"'{name}' is made from raw files. Leave it out, or first run `hf-segkd prepare {name} --output FOLDER` "
            "(or --push_to_hub user/name)."
        )
    if name in BUILDERS:
        return BuiltDataset(name, data_dir, cache_dir, options)
    if os.path.isdir(name) or name.count("/") == 1:
        kind = StreamedDataset if streaming else StoredDataset
        return kind(name, data_dir, cache_dir, options)
    raise ValueError(
        f"Unknown dataset '{name}'.{did_you_mean(name, BUILDERS)} Available: {', '.join(BUILDERS)}; "
        "or a folder, or a Hub id such as user/name."
    )


def open_from_arguments(arguments: Any) -> "OpenedDataset":
    """Open what `--dataset`, `--data_dir` and the flags of [`DataArguments`] name; see [`open_dataset`].

    Args:
        arguments: [`DataArguments`], or an `argparse.Namespace`, with `dataset` and `data_dir` too.
    """
    return open_dataset(arguments.dataset, arguments.data_dir, **data_options(arguments))
