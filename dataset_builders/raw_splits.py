"""Splits as they are stored, for the checks before training: nothing is decoded or prepared."""

import os

import datasets
import numpy as np
import PIL.Image
import pyarrow.compute

from dataset_builders.files import FileReader, RawFile, below, stored_file
from dataset_builders.pair_builder import Pairs
from hf_segkd.data.raw import decode_mask, orientation, turned_as


class FileSplit:
    """Pairs of files, in folders or zip archives.

    Args:
        pairs (`Pairs`): From [`~dataset_builders.built.BuiltDataset.files`].
        root (`str`, *optional*): Folder that names are relative to.
        turn (`bool`, *optional*, defaults to `False`): Whether masks are turned as EXIF turns their images.
    """

    def __init__(self, pairs: Pairs, root: str | None, turn: bool = False):
        self.pairs = pairs
        self.root = root
        self.turn = turn
        self.reader = FileReader()

    def __len__(self) -> int:
        return len(self.pairs)

    def names(self, index: int) -> tuple[str, str]:
        """Paths of image and mask below the root."""
        return tuple(below(str(file), self.root) if file else "no mask" for file in self.pairs[index])

    def sizes(self) -> list[int | None]:
        """Bytes of each image."""
        return [self._size(image) for image, _ in self.pairs]

    def unlabeled(self) -> int:
        """Number of images without a mask."""
        return sum(mask is None for _, mask in self.pairs)

    def read_image(self, index: int) -> bytes:
        """Encoded image."""
        return self.reader.read(self.pairs[index][0])

    def read_mask(self, index: int) -> bytes | np.ndarray | PIL.Image.Image | None:
        """Encoded mask, or one that was turned; `None` is declared unlabeled."""
        image, mask = self.pairs[index]
        if mask is None:
            return None
        content = self.reader.read(mask)
        if not self.turn:
            return content
        with PIL.Image.open(self.reader.source(image)) as picture:
            return turned_as(decode_mask(content), orientation(picture))

    def _size(self, image: RawFile) -> int | None:
        return self.reader.size(image) if image.path.is_file() else None


class RowSplit:
    """Rows of a stored dataset.

    Args:
        rows (`datasets.Dataset`): Columns `image`, `annotation`, `image_id`; a transform is put aside.

    Attributes:
        all_names (`list[str]`): Name of each image's file where the dataset knows it, else the row's `image_id`.
    """

    def __init__(self, rows: datasets.Dataset):
        if not isinstance(rows.features["image"], datasets.Image):
            kind = type(rows.features["image"]).__name__
            raise ValueError(f"The column of images holds {kind}, expected Image. Cast it with datasets.Image().")
        rows = rows.with_format(None)
        for column in ("image", "annotation"):
            if isinstance(rows.features[column], datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
        self.rows = rows
        self.reader = FileReader()
        self.all_names, self._sizes = self._names_and_sizes(rows.remove_columns("annotation").with_format("arrow"))

    def __len__(self) -> int:
        return len(self.rows)

    def names(self, index: int) -> tuple[str, str]:
        """Name of the image's file where the dataset knows it, else the row's `image_id`."""
        return self.all_names[index], f"mask of {self.all_names[index]}"

    def sizes(self) -> list[int | None]:
        """Bytes of each image."""
        return self._sizes

    def unlabeled(self) -> int:
        """Number of rows without a mask."""
        batches = self.rows.select_columns("annotation").with_format("arrow").iter(batch_size=1000)
        return sum(batch["annotation"].null_count for batch in batches)

    def read_image(self, index: int) -> bytes:
        """Encoded image."""
        return self._content(self.rows[index]["image"])

    def read_mask(self, index: int) -> bytes | np.ndarray | None:
        """Encoded mask, or the values of a column of arrays; `None` is declared unlabeled."""
        mask = self.rows[index]["annotation"]
        return self._content(mask) if isinstance(mask, dict) else mask if mask is None else np.asarray(mask)

    def _names_and_sizes(self, rows: datasets.Dataset) -> tuple[list[str], list[int | None]]:
        """Name and bytes of each image, from the offsets of the table: the images themselves are not touched."""
        names, sizes = [], []
        for batch in rows.iter(batch_size=1000):
            image, image_ids = batch["image"].combine_chunks(), batch["image_id"].to_pylist()
            paths = image.field("path").to_pylist()
            lengths = pyarrow.compute.binary_length(image.field("bytes")).to_pylist()
            names += [_name(path) if path else str(image_id) for path, image_id in zip(paths, image_ids, strict=True)]
            sizes += [self._size(path) if size is None else size for path, size in zip(paths, lengths, strict=True)]
        return names, sizes

    def _content(self, stored: dict) -> bytes:
        return self.reader.read(stored_file(stored["path"])) if stored["bytes"] is None else stored["bytes"]

    def _size(self, path: str | None) -> int | None:
        file = stored_file(path) if path else None
        return self.reader.size(file) if file and file.path.is_file() else None


def _name(path: str) -> str:
    file = stored_file(path)
    return os.path.basename(file.member or file.path)
