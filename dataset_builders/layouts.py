"""Folders of images and masks in the layouts that tools write: which mask belongs to which image, in which split."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dataset_builders.files import (
    MASK_SUFFIXES,
    SPLIT_FOLDERS,
    RawFile,
    composed,
    examples,
    split_of_folder,
)
from dataset_builders.pair_builder import Pairs
from dataset_builders.patterns import Pattern
from hf_segkd.data.sampling import original_name

logger = logging.getLogger(__name__)
SPLITS = tuple(SPLIT_FOLDERS)
# Folders of images and of masks; each may hold folders of splits, or lie in one.
LAYOUTS = {
    "masks": ("images", "masks"),
    "mmseg": ("img_dir", "ann_dir"),
    "voc": ("JPEGImages", "SegmentationClass"),
    "voc_png": ("JPEGImages", "SegmentationClassPNG"),
    "voc_npy": ("JPEGImages", "SegmentationClassNpy"),
    "ade20k": ("images", "annotations"),
    "labels": ("images", "labels"),
}
# Masks beside the images, as Roboflow writes them.
BESIDE = (("{split}/*", "{split}/*_mask"), ("*", "*_mask"))
# Layouts whose folders may belong to an export of shapes just as well.
VAGUE = {"ade20k", "labels"}
MASK_FORMATS = (*LAYOUTS, "roboflow")
Keyed = dict[str, tuple[RawFile, RawFile | None]]


class Layout(NamedTuple):
    """Places of images and masks; an image and its mask have the same key."""

    name: str
    image: Pattern
    mask: Pattern
    images: dict[str, str]
    masks: dict[str, str]


def find_layouts(files: dict[str, RawFile], name: str | None = None) -> list[Layout]:
    """Layouts that a folder's files are in, those with masks; of these that share a name, each part."""
    found = []
    for layout, (images, masks) in LAYOUTS.items():
        for pattern in ("{}/**/*", "{{split}}/{}/**/*"):
            found.append(match_layout(layout, pattern.format(images), pattern.format(masks), files))
    found += [match_layout("roboflow", *patterns, files) for patterns in BESIDE]
    found = [layout for layout in found if name in (None, layout.name) and layout.images and layout.masks]
    # labelme2voc writes the same masks up to three times: as pictures for people, palette PNG and arrays.
    names = {layout.name for layout in found}
    repeated = [kind for kind in ("voc_png", "voc_npy", "voc") if kind in names][1:]
    return [layout for layout in found if layout.name not in repeated]


def match_layout(name: str, image: str, mask: str, files: dict[str, RawFile]) -> Layout:
    """Match both patterns; a file that is a mask is no image."""
    image_pattern = Pattern(image)
    mask_pattern = Pattern(mask, MASK_SUFFIXES)
    masks = mask_pattern.match(files)
    taken = set(masks.values())
    images = {key: path for key, path in image_pattern.match(files).items() if path not in taken}
    if not images:
        image_pattern = Pattern(image, {".npy"})
        images = {key: path for key, path in image_pattern.match(files).items() if path not in taken}
    return Layout(name, image_pattern, mask_pattern, images, masks)


def pair_layouts(layouts: list[Layout], files: dict[str, RawFile], fraction: float, seed: int) -> dict[str, Pairs]:
    """Pairs of images and masks by split.

    Splits are those of list files `ImageSets/Segmentation/*.txt`, else of folders; images without a split train. Where
    nothing validates, some of the labeled images to train on are drawn for it. A folder to score on needs no others.

    Raises:
        ValueError: Masks without an image, images without a mask outside the training split, lists that do not fit.
    """
    splits: dict[str, Keyed] = {}
    loose: Keyed = {}
    lists = _read_lists(files)
    for layout in layouts:
        _check_masks(layout)
        listed = _listed(layout, lists)
        for key, path in sorted(layout.images.items()):
            mask = files[layout.masks[key]] if key in layout.masks else None
            split = listed.get(key) if lists else layout.image.split(path)
            place = loose if split is None else splits.setdefault(split, {})
            place[key] = files[path], mask
    if not splits:
        splits["train"] = loose
    elif not lists:
        # Labeled images outside the split folders count as unused where there is a training split.
        joining = {key: pair for key, pair in loose.items() if pair[1] is None or "train" not in splits}
        if joining:
            splits["train"] = splits.get("train", {}) | joining
    for split, pairs in splits.items():
        _check_bare(split, pairs, layouts[0])
    if "train" in splits and "validation" not in splits:
        splits["train"], splits["validation"] = draw_validation(splits["train"], fraction, seed)
    return {split: list(splits[split].values()) for split in SPLITS if split in splits}


def draw_validation(pairs: Keyed, fraction: float, seed: int) -> tuple[Keyed, Keyed]:
    """Split `pairs` into training and validation by hash, with at least one image in each.

    Copies that Roboflow augmented, `name.rf.HASH`, stay together.
    """
    groups: dict[str, list[str]] = {}
    for key, (_, mask) in pairs.items():
        if mask is not None:
            groups.setdefault(original_name(key), []).append(key)
    if len(groups) < 2:
        raise ValueError(f"{len(groups)} labeled image cannot be split into train and validation. Label more.")
    chosen = {key for group in chosen_to_validate(groups, fraction, seed) for key in groups[group]}
    train = {key: pair for key, pair in pairs.items() if key not in chosen}
    return train, {key: pairs[key] for key in sorted(chosen)}


def chosen_to_validate(groups: Iterable[str], fraction: float, seed: int) -> list[str]:
    """Those whose hash is low; at least one validates, and one does not."""
    place = {group: _place(f"{seed} {group}") for group in groups}
    order = sorted(place, key=place.get)
    count = sum(value < fraction for value in place.values())
    return order[: min(max(count, 1), len(order) - 1)]


def unused_pictures(files: dict[str, RawFile], pairs: dict[str, Pairs]) -> list[str]:
    """Paths of pictures, and of other files of pixels, that no pair holds."""
    used = {file.path for items in pairs.values() for pair in items for file in pair if file is not None}
    pixels = MASK_SUFFIXES | {".heic", ".heif", ".dng", ".raw", ".jp2"}
    return [path for path, file in files.items() if file.path.suffix.lower() in pixels and file.path not in used]


def no_pictures(root: Path, found: str) -> ValueError:
    """What to say where nothing was found."""
    wanted = "; ".join(f"{images}/ and {masks}/" for images, masks in LAYOUTS.values())
    return ValueError(
        f"{root} holds no images/ and masks/ with pictures to train on, and no export that is known; found {found}. "
        f"Suffixes that count: {', '.join(sorted(MASK_SUFFIXES))}. Folders that count: {wanted}; or "
        "NAME_mask beside NAME. Other places: --images and --masks. See docs/your_own_data.md."
    )


def _check_masks(layout: Layout) -> None:
    if alone := layout.masks.keys() - layout.images.keys():
        raise ValueError(
            f"{len(alone)} of {len(layout.masks)} masks ({layout.mask}) have no image ({layout.image}) of the same "
            f"name: {examples(alone)}. Add the images, remove the masks, or give the patterns images and masks."
        )


def _check_bare(split: str, pairs: Keyed, layout: Layout) -> None:
    bare = [key for key, (_, mask) in pairs.items() if mask is None]
    if bare and (len(bare) == len(pairs) or split != "train"):
        raise ValueError(
            f"{len(bare)} of {len(pairs)} {split} images ({layout.image}) have no mask ({layout.mask}) of the same "
            f"name: {examples(bare)}. Only images to train on may be unlabeled. Suffixes of masks that count: "
            f"{', '.join(sorted(MASK_SUFFIXES))}."
        )
    if bare:
        logger.warning("%d of %d train images have no mask: they are unlabeled.", len(bare), len(pairs))


def _read_lists(files: dict[str, RawFile]) -> dict[str, tuple[str, list[str]]]:
    """Split -> path and lines of its list; of the lists of other names nothing is read."""
    found: dict[str, tuple[str, list[str]]] = {}
    for path, file in files.items():
        hit = re.fullmatch(r"(?:.*/)?ImageSets/(?:Segmentation/)?(\w+)\.txt", path)
        split = split_of_folder(hit[1]) if hit else None
        if split is None:
            continue
        if split in found:
            raise ValueError(f"Both {found[split][0]} and {path} list the {split} split. Keep one of them.")
        text = composed(file.path.read_text(encoding="utf-8-sig"))
        found[split] = path, [line.strip() for line in text.splitlines() if line.strip()]
    return found


def _listed(layout: Layout, lists: dict[str, tuple[str, list[str]]]) -> dict[str, str]:
    """Key of each image that a list names -> split."""
    names: dict[str, list[str]] = {}
    for key, path in layout.images.items():
        for name in {key, PurePosixPath(composed(path)).stem}:
            names.setdefault(name, []).append(key)
    found: dict[str, str] = {}
    for split, (path, lines) in lists.items():
        for line in lines:
            name = next((text for text in _spellings(line) if len(names.get(text, ())) == 1), None)
            if name is None:
                raise ValueError(f"{path} names '{line}', and there is not just one such image ({layout.image}).")
            key = names[name][0]
            if found.setdefault(key, split) != split:
                raise ValueError(f"'{line}' is listed for {found[key]} and for {split}. Keep it in one list.")
    return found


def _spellings(line: str) -> list[str]:
    """What a line may mean: the name as it is, or without its folder and suffix; the first of two paths."""
    paths = [line, line.split()[0]]
    stems = [PurePosixPath(path).stem for path in paths]
    return [*paths, *stems, *(PurePosixPath(path).name for path in paths)]


def _place(text: str) -> float:
    """A number from 0 to 1 that depends on `text` alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
