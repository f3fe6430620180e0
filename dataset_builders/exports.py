"""Exports of shapes as a dataset: its classes, pixels that lie in no shape, masks drawn when they are read."""

from __future__ import annotations

import hashlib
import io
import logging
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image

from dataset_builders.class_files import IGNORED, find_class_file
from dataset_builders.files import DrawnFile, RawFile, composed
from dataset_builders.formats import Export, LabeledImage, draw_mask
from dataset_builders.formats.labelme import BACKGROUND
from dataset_builders.formats.shapes import coco_tools
from dataset_builders.layouts import SPLITS, Keyed, draw_validation
from dataset_builders.own_classes import read_labels
from dataset_builders.pair_builder import Pairs
from hf_segkd.data.label_map import IGNORE_INDEX
from hf_segkd.values import did_you_mean

logger = logging.getLogger(__name__)
# Formats that say of each pixel what it is: 0 is "not labeled" there.
DENSE = ("ade20k_full",)
# Formats without a list of classes: they know those that were drawn.
OPEN_LISTS = ("labelme", "label_studio")
NEEDS_PYCOCOTOOLS = ("coco", "label_studio")


def export_classes(
    export: Export, root: Path, labels: list[str] | str | None, unlabeled_as: str | None
) -> tuple[tuple[str, ...], dict[str, int], int]:
    """Class names, the id of each label that is drawn, and the value of pixels in no shape.

    Args:
        export (`Export`): What the tool wrote.
        root (`Path`): Its folder, where labelme keeps the order of its classes in a file.
        labels (`list[str]` or `str`, *optional*): Names, or a file of them, that put the classes in another order, or
            leave some out.
        unlabeled_as (`str`, *optional*): `"background"` or `"ignore"`: what pixels in no shape are.

    Raises:
        ValueError: `unlabeled_as` is not given, or a name is not in the export.
    """
    if export.format in NEEDS_PYCOCOTOOLS:
        try:
            coco_tools()
        except ImportError as error:
            raise ValueError(str(error)) from None
    if unlabeled_as is None and export.format not in DENSE:
        raise ValueError(
            f"{root} holds shapes ({export.format}), and nothing says what the pixels in no shape are. Give "
            "--unlabeled_as background if everything that matters was outlined: they are then a class of their own. "
            "Give --unlabeled_as ignore if only some of it was: they then count neither in training nor in scores."
        )
    drawn = {shape.label for items in export.splits.values() for item in items for shape in item.shapes}
    known = {composed(name): name for name in export.labels}
    if unlabeled_as == "background" or BACKGROUND in drawn:
        own = next((name for name in known if _is_background(name)), None)
        known = known if own else {"background": BACKGROUND} | known
    names = _wanted(export, root, labels, known)
    if unlabeled_as == "background" and not any(map(_is_background, names)):
        names = next(name for name in known if _is_background(name)), *names
    left_out = [name for name in known if name not in names]
    if left_out:
        logger.warning("Shapes of %s are left out: their pixels count as in no shape.", ", ".join(left_out))
    ids = {known.get(name, name): index for index, name in enumerate(names)}
    background = next((index for index, name in enumerate(names) if _is_background(name)), None)
    if background is not None:
        ids[BACKGROUND] = background
    fill = background if unlabeled_as == "background" else IGNORE_INDEX
    return names, ids | {IGNORED: IGNORE_INDEX}, fill


def export_pairs(
    export: Export, files: dict[str, RawFile], ids: dict[str, int], fill: int, fraction: float, seed: int
) -> dict[str, Pairs]:
    """Pictures by split, each with the mask that its shapes draw; pictures that nobody opened train unlabeled.

    Raises:
        ValueError: There is no picture to train or to score on.
    """
    state = _state(files, ids, fill)
    splits: dict[str, Keyed] = {}
    for split, items in export.splits.items():
        for item in sorted(items, key=lambda item: item.image):
            if not item.reviewed and split != "train":
                continue
            mask = DrawnFile(item.image, draw=partial(_encoded, item, ids, fill), state=state)
            pair = RawFile(item.image), mask if item.reviewed else None
            splits.setdefault(split, {})[composed(str(item.image))] = pair
    if not splits:
        raise ValueError(f"The {export.format} export has no picture to train on, and none that somebody labeled.")
    train = splits.get("train", {})
    bare = sum(mask is None for _, mask in train.values())
    if bare:
        logger.warning("%d of %d train images have no annotation: they are unlabeled.", bare, len(train))
    if train and "validation" not in splits:
        root = _common_root(files)
        relative = {composed(str(pair[0].path.relative_to(root))): pair for pair in train.values()}
        splits["train"], splits["validation"] = draw_validation(relative, fraction, seed)
    return {split: list(splits[split].values()) for split in SPLITS if split in splits}


def is_annotation(path: str) -> bool:
    """Whether a picture belongs to the annotations of an export rather than to its photos."""
    name = Path(path).name
    in_panoptic = any(part.startswith("panoptic") for part in Path(path).parts[:-1])
    return in_panoptic or name.endswith("_seg.png") or "_parts_" in name


def _wanted(export: Export, root: Path, labels: list[str] | str | None, known: dict[str, str]) -> tuple[str, ...]:
    """Names in the order that is asked for, else in that of labelme's file, else of the export."""
    if labels is None:
        beside = find_class_file(root) if export.format == "labelme" else None
        named = tuple(map(_plain, beside[1].names)) if beside else ()
        return named if set(named) == set(known) else tuple(known)
    names = tuple(composed(name) for name in read_labels(labels).names)
    names = tuple(_plain(name) if name == BACKGROUND else name for name in names)
    for name in names:
        if name in known:
            continue
        hint = did_you_mean(name, known)
        if export.format in OPEN_LISTS and not hint:
            logger.warning("No shape is of class '%s'.", name)
        else:
            raise ValueError(f"The export has no class '{name}'.{hint} It has: {', '.join(known)}.")
    return names


def _plain(name: str) -> str:
    return "background" if name == BACKGROUND else name


def _is_background(name: str) -> bool:
    return name.lower().strip("_") == "background"


def _encoded(item: LabeledImage, ids: dict[str, int], fill: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(draw_mask(item, ids, fill).astype(np.uint8)).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _state(files: dict[str, RawFile], ids: dict[str, int], fill: int) -> str:
    """Text that changes when an annotation file, a class or the meaning of no shape does."""
    digest = hashlib.sha256(repr((sorted(ids.items()), fill)).encode())
    for path, file in files.items():
        if path.lower().endswith((".json", ".txt", ".yaml", ".yml")) or is_annotation(path):
            digest.update(file.fingerprint(None).encode())
    return digest.hexdigest()[:16]


def _common_root(files: dict[str, RawFile]) -> Path:
    path, file = next(iter(files.items()))
    return Path(str(file.path)[: -len(path)])
