"""A dataset whose training rows are read while a run trains, and never kept."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import datasets
from datasets.distributed import split_dataset_by_node

from dataset_builders.completeness import check_files, check_parts
from dataset_builders.opened import Skipped
from dataset_builders.stored import MapAnnotations, StoredDataset, check_columns, renamed
from dataset_builders.writing import reason
from hf_segkd.data import TrainTransform
from hf_segkd.data.streaming import StreamedSet

TRAIN = "train"  # the split that is streamed


class StreamedDataset(StoredDataset):
    """A Hub id, or a folder of parquet files, whose train split is streamed.

    The other splits are stored as for [`~dataset_builders.stored.StoredDataset`]; a validation split must be among
    them, because none can be drawn from rows that nobody has counted.
    """

    streamed = True

    @property
    def splits(self) -> list[str]:
        return [TRAIN, *self._mapped]

    @property
    def bands(self) -> None:
        if self._band_names[0]:
            raise ValueError(
                "--streaming reads 8-bit RGB alone: mean and deviation of bands are measured on the training images, "
                "which are not there before the run. Leave it out."
            )
        return None

    def all_splits(self, num_proc: int | None = None) -> datasets.DatasetDict:
        raise ValueError(
            f"The train split of '{self.name}' is streamed; it cannot be prepared. Leave out --streaming."
        )

    def _rows(self, split: str, skip: Skipped) -> datasets.Dataset:
        if split.split("[")[0] == TRAIN:
            raise ValueError(f"The rows of the train split of '{self.name}' are streamed; they have no numbers.")
        return super()._rows(split, skip)

    def stream(
        self, transform: TrainTransform, *, seed: int, shuffle_buffer: int, process: int = 0, processes: int = 1
    ) -> StreamedSet:
        """The training rows of one of several processes, augmented, without an end.

        Args:
            transform ([`~hf_segkd.data.TrainTransform`]): Crops, scales and flips.
            seed (`int`): Seed of the order and of the augmentation.
            shuffle_buffer (`int`): Rows from which the next one is drawn.
            process, processes (`int`, *optional*): Which of how many; each gets other rows.

        Raises:
            `ValueError`: If the columns are not there, or the split cannot be opened.
        """
        rows = self._train_stream.shuffle(seed=seed, buffer_size=shuffle_buffer)
        rows = split_dataset_by_node(rows, rank=process, world_size=processes)
        how = {"seed": seed, "process": process, "source": self._state()}
        map_annotations = MapAnnotations(self.label_map)
        return StreamedSet(rows, self._train_stream, transform, self.spec.num_labels, map_annotations, **how)

    @cached_property
    def _train_stream(self) -> datasets.IterableDataset:
        """Rows with the columns `image`, still encoded, `annotation` and, where there is one, `image_id`."""
        rows = self._open(self.name, data_dir=self.data_dir, split=TRAIN, streaming=True)
        if rows.features is None:
            rows = rows._resolve_features()
        check_columns(rows, TRAIN, self.config)
        rows = renamed(rows, self.config)
        if not isinstance(rows.features["image"], datasets.Image):
            raise ValueError(f"The column '{self.config.image_column}' holds no images. Give --image_column.")
        return rows.cast_column("image", datasets.Image(decode=False))

    @cached_property
    def _stored(self) -> datasets.DatasetDict:
        """The splits beside train: their files alone are fetched."""
        folder = Path(self.name)
        if any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
            raise ValueError(
                f"'{self.name}' is a folder of save_to_disk, which is read in place already. Leave out --streaming."
            )
        check_parts(folder)
        builder = self._builder
        files = builder.config.data_files or {}
        if TRAIN not in files or "validation" not in files:
            found = ", ".join(map(str, files)) or "none"
            raise ValueError(
                f"--streaming needs a train and a validation split, and '{self.name}' has {found}: without knowing "
                "all rows none can be set apart. Store a validation split, or leave out --streaming."
            )
        files = {split: list(paths) for split, paths in files.items() if split != TRAIN}
        features = {} if builder.info.features is None else {"features": builder.info.features}
        splits = self._open(builder.name, data_files=files, cache_dir=self.cache_dir, **features)
        check_files(self.name, splits)
        return splits

    @cached_property
    def _builder(self) -> datasets.DatasetBuilder:
        return self._call(datasets.load_dataset_builder, self.name, data_dir=self.data_dir)

    def _state(self) -> str:
        """Text that changes when the training files do: their names, with dates, or the commit on the Hub."""
        files = self._builder.config.data_files[TRAIN]
        text = f"{sorted(Path(file).name for file in files)} {sorted(files.origin_metadata)}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _open(self, *arguments: Any, **options: Any) -> Any:
        return self._call(datasets.load_dataset, *arguments, **options)

    def _call(self, function, *arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except (OSError, RuntimeError, ValueError, BadZipFile, datasets.exceptions.DatasetsError) as error:
            raise ValueError(f"Cannot open the dataset '{self.name}': {reason(error)}") from error
