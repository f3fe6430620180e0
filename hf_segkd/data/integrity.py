"""Problems in the files of a dataset, found before training."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from hf_segkd.data.label_map import LabelMap
from hf_segkd.data.parallel import in_threads
from hf_segkd.data.pixels import misfit, read_pixels, refusal
from hf_segkd.data.raw import (
    SMALLEST_SIDE,
    RawSplit,
    Unreadable,
    decode,
    decode_mask,
    distinct,
    looks_mixed,
    orientation,
    raw_values,
    read,
    upright_size,
)
from hf_segkd.data.sampling import original_name

if TYPE_CHECKING:
    from hf_segkd.models.bands import Bands

ADVICE = {
    "unreadable": "Restore these files, or leave the images to train on out with --skip_unreadable.",
    "pixels": "The images are no 8-bit RGB pictures: name their bands with the flag shown; all images must be alike.",
    "size": "Pair each image with its own mask, at the size of the image (after its EXIF rotation).",
    "tiny image": "An image of a single pixel in height or width is no photo. Remove it and its mask.",
    "color mask": "Save one class id per pixel, or give a --label_map from colors to classes.",
    "fractions": "Classes are whole numbers: save the class of each pixel, not probabilities or scaled values.",
    "JPEG mask": "JPEG invents values between the classes: save masks as PNG, from the original labels.",
    "lossy mask": "JPEG or resizing mixed the values at borders: save masks again, from the original labels.",
    "values": "Give a --label_map from raw values to classes, or all class names in --labels.",
    "binary mask": (
        "Is 255 the object, or unlabeled? Say --value_255 object (with two --labels, the first for 0), or "
        '--value_255 unlabeled. The same as a --label_map: {"0": "background", "255": "object"}.'
    ),
    "leak": "An image in two splits makes the scores worthless. Keep each in one split.",
    "no label": "All pixels are ignored. Leave the mask out to say that an image is unlabeled.",
    "turned image": (
        "EXIF turns these photos when they are shown, and not their masks. If these were drawn on the stored pixels, "
        "give --turn_masks; overview.png of hf-segkd prepare shows which it is."
    ),
    "augmented copy": (
        "Copies of one picture in two splits make the scores too good. Keep files of one name before `.rf.` in one "
        "split; where two pictures had the same name once, all is well."
    ),
    "same name": "Other content, but check that these are not the same scene.",
}
WARNINGS = ("no label", "turned image", "augmented copy", "same name")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one file.

    Args:
        kind (`str`): Key of [`ADVICE`].
        split (`str`): Where.
        index (`int`): Position in the split.
        file (`str`): Name of the file.
        detail (`str`): What was found.
    """

    kind: str
    split: str
    index: int
    file: str
    detail: str


def find_problems(
    splits: dict[str, RawSplit],
    label_map: LabelMap,
    num_labels: int,
    limits: dict[str, int | None],
    bands: Bands | None = None,
) -> list[Problem]:
    """Decode a sample of the images and masks of each split and list what is wrong with them.

    Args:
        splits (`dict[str, RawSplit]`): Files by split.
        label_map (`LabelMap`): What raw values may occur.
        num_labels (`int`): Number of classes K.
        limits (`dict[str, int | None]`): Splits to look at, and up to how many evenly spread items of each; `None` is
            all of them.
        bands ([`~hf_segkd.models.Bands`], *optional*): What images hold that are not 8-bit RGB.

    Returns:
        `list[Problem]`: In the order of the files.
    """
    problems = []
    for name, limit in limits.items():
        count = len(splits[name])
        sample = range(0, count, 1 if limit is None else max(1, -(-count // limit)))
        looks = list(in_threads(_Look(name, splits[name], label_map, bands), sample, f"checking {name}"))
        found = [problem for wrong, _ in looks for problem in wrong]
        if label_map.hides_an_object(set().union(*(raw for _, raw in looks)), num_labels):
            found = [problem for problem in found if problem.kind != "no label"]
            for index in (index for index, (_, raw) in zip(sample, looks, strict=True) if 255 in raw):
                mask = splits[name].names(index)[1]
                found.append(Problem("binary mask", name, index, mask, "holds 0 and 255 alone, as all masks here"))
        problems += found
    return problems


class _Look:
    """Looks at one item of a split: its problems, and the raw values of its mask."""

    def __init__(self, name: str, split: RawSplit, label_map: LabelMap, bands: Bands | None):
        self.name, self.split = name, split
        self.bands = bands
        self.colors, self.known, self.ignored = label_map.colors, label_map.known, label_map.ignored

    def __call__(self, index: int) -> tuple[list[Problem], set[int]]:
        image, mask = self.split.names(index)
        found, photo, raw = [], None, set()
        try:
            photo, wrong = self._open(read(self.split.read_image, index))
            found += [("pixels", image, wrong)] if wrong else []
            if photo is not None and min(photo.size) < SMALLEST_SIDE:
                found.append(("tiny image", image, f"{photo.width} x {photo.height} pixels"))
        except Unreadable as error:
            found.append(("unreadable", image, str(error)))
        try:
            content = read(self.split.read_mask, index)
            wrong = [] if content is None else self._wrong(content, photo, raw)
            found += [(kind, mask, detail) for kind, detail in wrong]
        except Unreadable as error:
            found.append(("unreadable", mask, str(error)))
        return [Problem(kind, self.name, index, file, detail) for kind, file, detail in found], raw

    def _open(self, content: bytes) -> tuple[PIL.Image.Image | None, str | None]:
        """The photo, of bands a blank one of their size, and what is wrong with its pixels."""
        if self.bands is None:
            wrong = refusal(content)
            return (None if wrong else decode(content)), wrong
        array = read_pixels(content)
        return PIL.Image.new("1", array.shape[1::-1]), misfit(array, self.bands)

    def _wrong(self, content, photo: PIL.Image.Image | None, found: set[int]) -> Iterator[tuple[str, str]]:
        """Kind and detail of each problem of a mask; its raw values are added to `found`."""
        mask = decode_mask(content) if isinstance(content, bytes) else content
        picture = isinstance(mask, PIL.Image.Image)
        shape = upright_size(mask) if picture else mask.shape[:2]
        if photo is not None:
            yield from _wrong_size(photo, shape, isinstance(content, bytes))
        raw = raw_values(mask, self.colors)
        if picture and mask.format == "JPEG":
            yield "JPEG mask", "saved as JPEG"
        elif raw.ndim == 2 and raw.dtype.kind == "f":
            broken = raw[~np.isfinite(raw) | (raw != np.rint(raw))]
            yield "fractions", f"holds numbers such as {broken[0]:.4g}"
        elif raw.ndim != 2 or raw.dtype.kind not in "ui":
            yield "color mask", f"values of shape {raw.shape}, expected one class id per pixel"
        else:
            yield from self._wrong_values(raw, found)

    def _wrong_values(self, raw: np.ndarray, found: set[int]) -> Iterator[tuple[str, str]]:
        present = distinct(raw)
        found.update(present.tolist())
        unknown = np.setdiff1d(present, self.known)
        if unknown.size:
            shown = ", ".join(f"#{x:06x}" if self.colors else str(x) for x in unknown[:8].tolist())
            more = f", ... ({unknown.size} values)" if unknown.size > 8 else ""
            share = 100 * np.isin(raw, unknown).mean()
            kind = "lossy mask" if looks_mixed(raw, unknown) else "values"
            yield kind, f"holds {shown}{more} on {share:.2g} % of its pixels"
        elif np.isin(present, self.ignored).all():
            yield "no label", "all pixels are ignored"


def _wrong_size(photo: PIL.Image.Image, shape: tuple[int, int], as_stored: bool) -> Iterator[tuple[str, str]]:
    """Whether a mask has another size than its photo as it is shown, or may lie turned on it unseen."""
    size, stored = upright_size(photo), photo.size[::-1]
    turned = orientation(photo) != 1
    if shape != size:
        hint = " before EXIF turns it: --turn_masks" if turned and shape == stored else ""
        yield "size", f"{shape[1]} x {shape[0]} pixels, its image {size[1]} x {size[0]}{hint}"
    elif turned and as_stored and size == stored:
        yield "turned image", f"EXIF orientation {orientation(photo)}, its mask has the same size either way"


def find_leaks(splits: dict[str, RawSplit]) -> list[Problem]:
    """List images that are in two splits: with the same content, or another content and the same file name.

    All images are compared; only those whose sizes in bytes coincide are read. The content is the file's: a copy that
    was saved anew is found by its name alone, one that Roboflow augmented (`name.rf.HASH`) by the part before `.rf.`.
    """
    places = [(name, index) for name, split in splits.items() for index in range(len(split))]
    sizes = [size for split in splits.values() for size in split.sizes()]
    suspects = [place for group in _shared(places, sizes) for place in group]
    contents = in_threads(lambda place: _digest(splits[place[0]], place[1]), suspects, "comparing splits")
    leaks = _problems("leak", splits, _shared(suspects, contents))
    known = {(problem.split, problem.index) for problem in leaks}
    names = [PurePath(splits[name].names(index)[0]).name for name, index in places]
    copies = [original_name(name) if original_name(name) != name else None for name in names]
    for kind, keys in (("augmented copy", copies), ("same name", [PurePath(name).stem for name in names])):
        groups = [[place for place in group if place not in known] for group in _shared(places, keys)]
        found = _problems(kind, splits, [group for group in groups if group])
        known |= {(problem.split, problem.index) for problem in found}
        leaks += found
    return leaks


def _shared(places: list[tuple[str, int]], keys: Iterable) -> list[list[tuple[str, int]]]:
    """Groups of places with the same key, those that reach over more than one split."""
    groups = defaultdict(list)
    for place, key in zip(places, keys, strict=True):
        groups[key].append(place)
    groups.pop(None, None)
    return [group for group in groups.values() if len({split for split, _ in group}) > 1]


def _problems(kind: str, splits: dict[str, RawSplit], groups: list[list[tuple[str, int]]]) -> list[Problem]:
    """One problem for each place outside the split of the group's first."""
    problems = []
    for (split, index), *others in groups:
        detail = f"the same as {splits[split].names(index)[0]} of {split}"
        for place in (place for place in others if place[0] != split):
            problems.append(Problem(kind, *place, splits[place[0]].names(place[1])[0], detail))
    return problems


def _digest(split: RawSplit, index: int) -> bytes | None:
    try:
        return hashlib.sha256(read(split.read_image, index)).digest()
    except Unreadable:
        return None


def problem_table(problems: list[Problem], lines: int = 10) -> str:
    """One table of all problems, up to `lines` per kind, and below it what to do about each kind."""
    rows, advice = [("problem", "split", "file", "what was found")], []
    for kind, what_to_do in ADVICE.items():
        found = [problem for problem in problems if problem.kind == kind]
        rows += [(kind, problem.split, problem.file, problem.detail) for problem in found[:lines]]
        if len(found) > lines:
            rows.append((kind, "...", "", f"{len(found) - lines} more, {len(found)} in all"))
        if found:
            advice.append(f"{kind}: {what_to_do}")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*text, *advice])
