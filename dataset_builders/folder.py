"""Images and masks of your own: `images/` and `masks/`, or two patterns.

python dataset_builders/folder.py --data_dir photos --labels labels.txt --output photos_prepared
"""

import hashlib
import logging
from dataclasses import dataclass

import datasets

from dataset_builders import own_classes as own_classes_module
from dataset_builders.files import Pattern, RawFile, check_folder, examples, listing, walk
from dataset_builders.own_classes import own_classes, own_spec
from dataset_builders.pair_builder import PairBuilder

logger = logging.getLogger(__name__)
SPLITS = {"train": ("train",), "validation": ("val", "validation", "valid"), "test": ("test",)}


@dataclass
class FolderConfig(datasets.BuilderConfig):
    """Where images and masks are, and what the values of the masks mean.

    Args:
        labels (`list[str]` or `str`, *optional*): Class names, or a `.txt` or `.json` file of them.
        label_map (`dict` or `str`, *optional*): Raw value or colour -> class, or a `.json` file; by default raw values
            are class ids. See [`~dataset_builders.own_classes.own_classes`].
        images (`str`, *optional*): Pattern such as `"photos/*.jpg"`; what `*` stands for pairs image and mask.
        masks (`str`, *optional*): Pattern such as `"masks/*_mask.png"`, with as many `*` as `images`.
        ignore_index (`int`, *optional*, defaults to `255`): Raw value of pixels without a label.
        validation_fraction (`float`, *optional*, defaults to `0.1`): Chance of a labelled image to validate where
            the folder has no validation split, between 0 and 1.
        split_seed (`int`, *optional*, defaults to `0`): Chooses which these are.

    Raises:
        `ValueError`: If only one pattern is given, or the fraction is not between 0 and 1.
    """

    labels: list[str] | str | None = None
    label_map: dict | str | None = None
    images: str | None = None
    masks: str | None = None
    ignore_index: int = 255
    validation_fraction: float = 0.1
    split_seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        if (self.images is None) != (self.masks is None):
            raise ValueError("Give both patterns, images and masks, or neither.")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be between 0 and 1, got {self.validation_fraction}.")


class Folder(PairBuilder):
    """Reads `images/` and `masks/` below `data_dir`, paired by the part of their paths before the suffix.

    Splits are the subfolders `train`, `val` (or `validation`, `valid`) and `test`, either of `images/` and `masks/` or
    around them. Without a validation split, some labelled images become one; which ones depends on their names and on
    `split_seed` alone, so that adding images moves none. Images without a mask join the train split, unlabelled.
    """

    BUILDER_CONFIG_CLASS = FolderConfig
    TITLE = "Your dataset"
    PAGE = "See docs/your_own_data.md."
    CODE = (*PairBuilder.CODE, own_classes_module)

    @classmethod
    def spec(cls, data_dir, config):
        root = check_folder(data_dir, cls.TITLE, "images/ and masks/", cls.PAGE)
        return own_spec(root.name, own_classes(config.labels, config.label_map, config.ignore_index)[0])

    @classmethod
    def label_map(cls, config):
        return own_classes(config.labels, config.label_map, config.ignore_index)[1]

    @classmethod
    def find_pairs(cls, data_dir, config):
        root = check_folder(data_dir, cls.TITLE, "images/ and masks/", cls.PAGE)
        files = walk(root, root)
        pairs = {}
        for split, (image, mask) in _patterns(files, config).items():
            images, masks = image.match(files), mask.match(files)
            if images:
                _check_pairs(split, images, masks, image, mask)
                pairs[split] = {key: (images[key], masks.get(key)) for key in sorted(images)}
        if "train" not in pairs:
            raise ValueError(f"{root} holds no images/ with pictures to train on; found {listing(root)}. {cls.PAGE}")
        if "validation" not in pairs:
            pairs["train"], pairs["validation"] = _split(pairs["train"], config)
        return {split: list(pairs[split].values()) for split in SPLITS if split in pairs}


def _patterns(files: dict[str, RawFile], config: FolderConfig) -> dict[str, tuple[Pattern, Pattern]]:
    """Patterns of images and masks per split; the split folders win over undivided ones."""
    if config.images is not None:
        return {"train": (Pattern(config.images), Pattern(config.masks))}
    patterns = {}
    for split, folders in SPLITS.items():
        for folder in folders:
            for layout in (f"{{}}/{folder}/**/*", f"{folder}/{{}}/**/*"):
                image, mask = Pattern(layout.format("images")), Pattern(layout.format("masks"))
                if image.match(files):
                    patterns[split] = (image, mask)
    return patterns or {"train": (Pattern("images/**/*"), Pattern("masks/**/*"))}


def _check_pairs(split: str, images: dict, masks: dict, image: Pattern, mask: Pattern) -> None:
    alone = masks.keys() - images.keys()
    if alone:
        raise ValueError(
            f"{len(alone)} of {len(masks)} {split} masks ({mask}) have no image ({image}) of the same name: "
            f"{examples(alone)}. Add the images, remove the masks, or give the patterns images and masks."
        )
    bare = images.keys() - masks.keys()
    if bare and (not masks or split != "train"):
        raise ValueError(
            f"{len(bare)} of {len(images)} {split} images ({image}) have no mask ({mask}) of the same name: "
            f"{examples(bare)}. Only images to train on may be unlabelled."
        )
    if bare:
        logger.warning("%d of %d train images have no mask: they are unlabelled.", len(bare), len(images))


def _split(pairs: dict, config: FolderConfig) -> tuple[dict, dict]:
    """Train and validation part of `pairs`: those whose hash is low validate, and at least one does either."""
    place = {key: _place(f"{config.split_seed} {key}") for key, (_, mask) in pairs.items() if mask is not None}
    if len(place) < 2:
        raise ValueError(f"{len(place)} labelled image cannot be split into train and validation. Label more.")
    order = sorted(place, key=place.get)
    count = sum(value < config.validation_fraction for value in place.values())
    chosen = set(order[: min(max(count, 1), len(order) - 1)])
    train = {key: pair for key, pair in pairs.items() if key not in chosen}
    return train, {key: pairs[key] for key in sorted(chosen)}


def _place(text: str) -> float:
    """A number from 0 to 1 that depends on `text` alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


if __name__ == "__main__":
    from dataset_builders.prepare import main

    main("folder", __doc__)
