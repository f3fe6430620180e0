"""Images and masks of your own: `images/` and `masks/`, two patterns, or what a labeling tool exported.

python dataset_builders/folder.py --data_dir photos --labels labels.txt --output photos_prepared
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import datasets

from dataset_builders import class_files, exports, layouts
from dataset_builders import own_classes as own_classes_module
from dataset_builders.class_files import find_class_file
from dataset_builders.exports import export_classes, export_pairs, is_annotation
from dataset_builders.files import RawFile, check_folder, check_heic, listing, walk
from dataset_builders.formats import FORMATS, Export, find_format, read_export, shapes
from dataset_builders.layouts import (
    LAYOUTS,
    MASK_FORMATS,
    VAGUE,
    Layout,
    find_layouts,
    match_layout,
    no_pictures,
    pair_layouts,
    unused_pictures,
)
from dataset_builders.listing import Listing
from dataset_builders.own_classes import Meaning, own_classes, own_spec
from dataset_builders.pair_builder import PairBuilder, Pairs
from hf_segkd.data.label_map import LabelMap
from hf_segkd.values import check_choice

logger = logging.getLogger(__name__)


@dataclass
class FolderConfig(datasets.BuilderConfig):
    """Where images and masks are, and what the values of the masks mean.

    Args:
        labels (`list[str]` or `str`, *optional*): Class names, or a file of them; by default one of the known files in
            the folder. Of an export: the classes to use, in their order.
        label_map (`dict` or `str`, *optional*): Raw value or color -> class, or a `.json` file; by default raw values
            are class ids. See [`~dataset_builders.own_classes.Meaning`], also for `ignore_index`,
            `zero_is_unlabeled` and `value_255`.
        images (`str`, *optional*): Pattern such as `"photos/*.jpg"`; what `*` stands for pairs image and mask,
            `{split}` stands for the names of splits.
        masks (`str`, *optional*): Pattern such as `"masks/*_mask.png"`, with as many `*` as `images`.
        data_format (`str`, *optional*): How the folder is laid out; recognized by itself where only one fits.
        unlabeled_as (`str`, *optional*): Of shapes: whether pixels in none are `"background"` or to `"ignore"`.
        turn_masks (`bool`, *optional*, defaults to `False`): Whether masks were drawn on photos as they are stored,
            before EXIF turns them.
        bands (`list[str]` or `str`, *optional*): Names of the images' channels, or a file of them, where images are
            not 8-bit RGB: [`~hf_segkd.data.pixels.read_pixels`] says what can be read.
        pixel_range (`list[float]`, *optional*): The values that models of 8-bit RGB see as 0 and as 255.
        validation_fraction (`float`, *optional*, defaults to `0.1`): Chance of a labeled image to validate where
            the folder has no validation split, between 0 and 1.
        split_seed (`int`, *optional*, defaults to `0`): Chooses which these are.

    Raises:
        `ValueError`: If only one pattern is given, the fraction is not between 0 and 1, or a word is unknown.
    """

    labels: list[str] | str | None = None
    label_map: dict | str | None = None
    images: str | None = None
    masks: str | None = None
    data_format: str | None = None
    unlabeled_as: str | None = None
    ignore_index: int = 255
    zero_is_unlabeled: bool = False
    value_255: str | None = None
    turn_masks: bool = False
    bands: list[str] | str | None = None
    pixel_range: list[float] | None = None
    validation_fraction: float = 0.1
    split_seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        if (self.images is None) != (self.masks is None):
            raise ValueError("Give both patterns, images and masks, or neither.")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be between 0 and 1, got {self.validation_fraction}.")
        if self.data_format is not None:
            check_choice("data_format", self.data_format, (*MASK_FORMATS, *FORMATS))
        if self.unlabeled_as is not None:
            check_choice("unlabeled_as", self.unlabeled_as, ("background", "ignore"))
        self.meaning = Meaning(self.label_map, self.ignore_index, self.zero_is_unlabeled, self.value_255)

    @cached_property
    def contents(self) -> "FolderContents":
        """Contents of `data_dir`, listed once."""
        return FolderContents(check_folder(self.data_dir, Folder.TITLE, "images/ and masks/", Folder.PAGE), self)


class FolderContents:
    """What a folder holds: masks in a layout, or an export of shapes.

    Args:
        root (`Path`): The folder.
        config ([`FolderConfig`]): What is known about it.
    """

    def __init__(self, root: Path, config: FolderConfig):
        self.root = root
        self.config = config
        self.listing: Listing | None = None

    @cached_property
    def files(self) -> dict[str, RawFile]:
        """All files by their path below the folder."""
        files = walk(self.root, self.root)
        check_heic(files)
        return files

    @cached_property
    def export(self) -> Export | None:
        """The export of shapes; `None` where there are masks.

        Raises:
            ValueError: The files of several tools lie there.
        """
        config = self.config
        if self.listing is not None or config.images is not None or config.data_format in MASK_FORMATS:
            return None
        if config.data_format in FORMATS:
            return read_export(self.root, config.data_format)
        names = sorted({layout.name for layout in self._known_layouts})
        if set(names) <= VAGUE:
            shapes_of = find_format(self.root)
            names += [shapes_of] if shapes_of else []
        if len(names) > 1:
            raise ValueError(f"{self.root} holds files of {' and of '.join(names)}. Say which: --data_format.")
        return read_export(self.root, names[0]) if names and names[0] in FORMATS else None

    @cached_property
    def _known_layouts(self) -> list[Layout]:
        return find_layouts(self.files)

    @cached_property
    def layouts(self) -> list[Layout]:
        """Where the masks are.

        Raises:
            ValueError: There are no pictures.
        """
        config = self.config
        if config.images is not None:
            found = [match_layout("patterns", config.images, config.masks, self.files)]
        else:
            images, masks = LAYOUTS["masks"]
            bare = match_layout("masks", f"{images}/**/*", f"{masks}/**/*", self.files)
            named = config.data_format
            known = self._known_layouts if named is None else find_layouts(self.files, named)
            found = known or [bare]
        if not any(layout.images for layout in found):
            raise no_pictures(self.root, listing(self.root))
        return found

    @cached_property
    def classes(self) -> tuple[tuple[str, ...], LabelMap]:
        """Class names, and what raw values mean."""
        config = self.config
        if self.export is not None:
            names, _, _ = self._drawing
            _, label_map = own_classes(list(names), Meaning(value_255="unlabeled"))
            return names, label_map
        named = config.labels or config.label_map is not None
        found = None if named else find_class_file(self.root, int(config.zero_is_unlabeled))
        names, label_map = own_classes(config.labels, config.meaning, found[1] if found else None)
        if found:
            listed = ", ".join(f"{index} {name}" for index, name in enumerate(names))
            logger.info("Classes from %s: %s", found[0], listed)
        return names, label_map

    @cached_property
    def pairs(self) -> dict[str, Pairs]:
        """Images and masks by split; what is not used is counted and named."""
        if self.listing is not None:
            return self.listing.pairs
        config = self.config
        how = config.validation_fraction, config.split_seed
        if self.export is not None:
            _, ids, fill = self._drawing
            for note in self.export.notes:
                logger.warning("%s: %s", self.root, note)
            return export_pairs(self.export, self.files, ids, fill, *how)
        return pair_layouts(self.layouts, self.files, *how)

    @cached_property
    def unused(self) -> list[str]:
        """Paths of pictures that are in no split."""
        if self.listing is not None:
            return self.listing.unused
        found = unused_pictures(self.files, self.pairs)
        return [path for path in found if not is_annotation(path)] if self.export is not None else found

    @cached_property
    def _drawing(self) -> tuple[tuple[str, ...], dict[str, int], int]:
        return export_classes(self.export, self.root, self.config.labels, self.config.unlabeled_as)


class Folder(PairBuilder):
    """Reads images and masks below `data_dir`, or the shapes that a labeling tool exported.

    Splits are those of list files, else of folders called `train`, `val` (or `validation`, `valid`) and `test`.
    Without a validation split, some labeled images become one; which ones depends on their names and on `split_seed`
    alone, so that adding images moves none. Images without a mask join the train split, unlabeled.
    """

    BUILDER_CONFIG_CLASS = FolderConfig
    TITLE = "Your dataset"
    PAGE = "See docs/your_own_data.md."
    CODE = (*PairBuilder.CODE, own_classes_module, class_files, exports, layouts, shapes)

    @classmethod
    def spec(cls, data_dir, config):
        return own_spec(config.contents.root.name, *config.contents.classes)

    @classmethod
    def label_map(cls, config):
        return config.contents.classes[1]

    @classmethod
    def turns_masks(cls, config):
        return config.turn_masks

    @classmethod
    def has_bands(cls, config):
        return config.bands is not None

    @classmethod
    def find_pairs(cls, data_dir, config):
        return config.contents.pairs

    @classmethod
    def use_listing(cls, config, listing):
        config.contents.listing = listing

    @classmethod
    def draws_masks(cls, config):
        return config.contents.export is not None

    @classmethod
    def unused(cls, config):
        return config.contents.unused


if __name__ == "__main__":
    from dataset_builders.prepare import main

    main("folder", __doc__)
