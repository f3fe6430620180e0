"""What was understood of a dataset, for people to look at: files, classes, pixels, and masks drawn over photos."""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import PIL.ImageOps

from dataset_builders.files import examples
from dataset_builders.opened import OpenedDataset
from hf_segkd.data.label_map import IGNORE_INDEX, LabelMap
from hf_segkd.data.parallel import in_threads
from hf_segkd.data.pixels import read_pixels
from hf_segkd.data.raw import RawSplit, Unreadable, decode_mask, read, upright_size
from hf_segkd.data.specs import DatasetSpec
from hf_segkd.reports.pictures import overlay, side_by_side, visible

if TYPE_CHECKING:
    from hf_segkd.models.bands import Bands

SAMPLE = 64  # masks per split that are counted at the start of a run
NAMED = 12  # classes in the short summary


@dataclass(frozen=True)
class SplitSummary:
    """What a split holds.

    Args:
        images (`int`): Number of images.
        unlabeled (`int`): Images without a mask.
        looked_at (`int`): Images whose files were opened.
        sizes (`Counter`): Width and height, pixels -> number of images.
        modes (`Counter`): Mode of Pillow (RGB, L, I;16, ...) -> number of images.
        pixels (`np.ndarray`): Pixels (256) of each train id in the masks, at 255 those that are ignored.
        extents (`np.ndarray`, *optional*): Lowest and highest value (2, C) of each band, where images have bands.
    """

    images: int
    unlabeled: int
    looked_at: int
    sizes: Counter
    modes: Counter
    pixels: np.ndarray
    extents: np.ndarray | None = None

    def shares(self, num_labels: int) -> list[float]:
        """Percent of the masks' pixels of each class, and of ignored ones."""
        pixels = [*self.pixels[:num_labels], self.pixels[IGNORE_INDEX]]
        return [100 * float(count) / max(1, int(self.pixels.sum())) for count in pixels]


@dataclass(frozen=True)
class DataSummary:
    """What was understood of a dataset: [`summarize`]."""

    spec: DatasetSpec
    splits: dict[str, SplitSummary]
    unused: list[str]
    bands: Bands | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON; shares are percent."""
        names = [*self.spec.labels, "unlabeled"]
        colors = [*map(_hex, self.spec.palette)]
        splits = {}
        for name, split in self.splits.items():
            splits[name] = {
                "images": split.images,
                "unlabeled": split.unlabeled,
                "looked_at": split.looked_at,
                "sizes": {f"{width}x{height}": count for (width, height), count in split.sizes.items()},
                "modes": dict(split.modes),
                "percent_of_pixels": dict(zip(names, split.shares(self.spec.num_labels), strict=True)),
            }
        classes = [
            {"id": index, "name": name, "color": color}
            for index, (name, color) in enumerate(zip(self.spec.labels, colors, strict=True))
        ]
        unused = {"count": len(self.unused), "files": self.unused[:100]}
        facts = {"name": self.spec.name, "classes": classes, "splits": splits, "unused": unused}
        return facts if self.bands is None else facts | {"bands": dataclasses.asdict(self.bands)}


def summarize(dataset: OpenedDataset, limit: int | None = None) -> DataSummary:
    """Look at the files of a dataset.

    Args:
        dataset ([`~dataset_builders.opened.OpenedDataset`]): From [`~dataset_builders.open_dataset`].
        limit (`int`, *optional*): Up to how many images of each split are opened, evenly spread; all by default.

    Raises:
        ValueError: A mask holds values that are no classes.
    """
    splits = {}
    for name, split in dataset.raw_splits().items():
        count = len(split)
        sample = range(0, count, 1 if limit is None else max(1, -(-count // limit)))
        look = _Look(split, dataset.label_map, dataset.bands)
        found = [item for item in in_threads(look, sample, f"counting {name}") if item is not None]
        splits[name] = SplitSummary(
            images=count,
            unlabeled=split.unlabeled(),
            looked_at=len(found),
            sizes=Counter(size for size, *_ in found),
            modes=Counter(mode for _, mode, *_ in found),
            pixels=sum((pixels for _, _, pixels, _ in found), np.zeros(256, dtype=np.int64)),
            extents=_extents([extent for *_, extent in found if extent is not None]),
        )
    return DataSummary(dataset.spec, splits, dataset.unused, dataset.bands)


def _extents(extents: list[np.ndarray]) -> np.ndarray | None:
    if not extents:
        return None
    lows, highs = np.stack(extents, axis=1)
    return np.stack([lows.min(axis=0), highs.max(axis=0)])


def summary_text(summary: DataSummary) -> str:
    """Tables of splits and classes, and what is not used."""
    rows = [("split", "images", "unlabeled", "width x height", "modes")]
    for name, split in summary.splits.items():
        modes = ", ".join(f"{mode} {count}" for mode, count in split.modes.most_common())
        rows.append((name, str(split.images), str(split.unlabeled), _sizes(split.sizes), modes))
    shares = {name: split.shares(summary.spec.num_labels) for name, split in summary.splits.items()}
    classes = [("class", "name", "color", *(f"{name} %" for name in shares))]
    for index, (label, color) in enumerate(zip(summary.spec.labels, summary.spec.palette, strict=True)):
        classes.append((str(index), label, _hex(color), *(f"{share[index]:.2f}" for share in shares.values())))
    classes.append(("", "unlabeled", "", *(f"{share[-1]:.2f}" for share in shares.values())))
    lines = [_aligned(rows), "", _aligned(classes), *_band_lines(summary), *_remarks(summary)]
    return "\n".join(lines)


def short_text(summary: DataSummary) -> str:
    """A few lines for the start of a run."""
    counts = []
    for name, split in summary.splits.items():
        unlabeled = f" ({split.unlabeled} unlabeled)" if split.unlabeled else ""
        counts.append(f"{name} {split.images}{unlabeled}")
    lines = [f"Data {summary.spec.name}: {', '.join(counts)} images"]
    train = summary.splits.get(summary.spec.train_split)
    if train is not None:
        shares = train.shares(summary.spec.num_labels)
        named = [f"{index} {label} {shares[index]:.1f}" for index, label in enumerate(summary.spec.labels)][:NAMED]
        more = summary.spec.num_labels - len(named)
        named += [f"and {more} more"] if more else []
        looked_at = train.looked_at
        lines.append(f"Percent of pixels ({looked_at} images): {', '.join(named)}; unlabeled {shares[-1]:.1f}")
    if summary.bands is not None:
        lines.append(f"Images: {summary.bands}")
    return "\n".join([*lines, *_remarks(summary)])


def overview(dataset: OpenedDataset, per_split: int = 4) -> PIL.Image.Image | None:
    """Photos of each split beside the same with their masks over them, and a legend; `None` without any mask."""
    rows = []
    spec = dataset.spec
    present: set[int] = set()
    for split in dataset.raw_splits().values():
        count = len(split)
        shown = 0
        for index in sorted(range(count), key=lambda index: index * 7919 % max(1, count)):
            if shown == per_split:
                break
            content = read(split.read_mask, index)
            if content is None:
                continue
            ids = _train_ids(content, dataset.label_map, split.names(index)[1])
            photo = _photo(read(split.read_image, index), dataset.bands)
            rows.append({"image": photo, "image and mask": overlay(photo, ids, spec.palette)})
            present |= set(np.unique(ids).tolist()) - {IGNORE_INDEX}
            shown += 1
    if not rows:
        return None
    order = sorted(present)
    return side_by_side(rows, [spec.labels[index] for index in order], [spec.palette[index] for index in order])


def _photo(content: bytes, bands: Bands | None) -> PIL.Image.Image:
    if bands is not None:
        return visible(read_pixels(content), bands.names)
    with PIL.Image.open(io.BytesIO(content)) as picture:
        return PIL.ImageOps.exif_transpose(picture).convert("RGB")


class _Look:
    """Opens one item of a split: size and mode of the image, pixels of each class, range of each band."""

    def __init__(self, split: RawSplit, label_map: LabelMap, bands: Bands | None):
        self.split = split
        self.label_map = label_map
        self.bands = bands

    def __call__(self, index: int) -> tuple[tuple[int, int], str, np.ndarray, np.ndarray | None] | None:
        """`None` for files that cannot be read: the check before training names them."""
        try:
            (height, width), mode, extent = self._pixels(read(self.split.read_image, index))
            content = read(self.split.read_mask, index)
            if content is None:
                return (width, height), mode, np.zeros(256, dtype=np.int64), extent
            ids = _train_ids(content, self.label_map, self.split.names(index)[1])
        except (Unreadable, OSError):
            return None
        return (width, height), mode, np.bincount(ids.ravel(), minlength=256), extent

    def _pixels(self, content: bytes) -> tuple[tuple[int, int], str, np.ndarray | None]:
        """Height and width, what a pixel holds, and the lowest and highest value (2, C) of each band."""
        if self.bands is None:
            with PIL.Image.open(io.BytesIO(content)) as picture:
                return upright_size(picture), _mode(picture, content), None
        array = read_pixels(content)
        extent = np.stack([array.min(axis=(0, 1)), array.max(axis=(0, 1))]).astype(np.float64)
        return array.shape[:2], f"{array.shape[-1]} x {array.dtype}", extent


def _mode(picture: PIL.Image.Image, content: bytes) -> str:
    """Mode of a picture, and what of it is not used: Pillow keeps the upper 8 of 16-bit colors of a PNG."""
    if content.startswith(b"\x89PNG") and content[24] == 16 and picture.mode.startswith("RGB"):
        return f"{picture.mode} (upper 8 of 16 bits)"
    if picture.format == "TIFF" and picture.mode == "RGBA":
        return "RGBA (fourth band called alpha: not used, unless --bands names it)"
    return picture.mode


def _train_ids(content, label_map: LabelMap, name: str) -> np.ndarray:
    return label_map(decode_mask(content) if isinstance(content, bytes) else content, name)


def _band_lines(summary: DataSummary) -> list[str]:
    """A table of the values that occur in each band, before anything is done to them."""
    if summary.bands is None:
        return []
    found = {name: split.extents for name, split in summary.splits.items() if split.extents is not None}
    rows = [("band", "name", *(f"{name}: lowest to highest" for name in found))]
    for index, band in enumerate(summary.bands.names):
        cells = [f"{low[index]:g} to {high[index]:g}" for low, high in found.values()]
        rows.append((str(index + 1), band, *cells))
    return ["", f"Images: {summary.bands}", _aligned(rows)]


def _remarks(summary: DataSummary) -> list[str]:
    lines = []
    train = summary.splits.get(summary.spec.train_split)
    if train is not None and train.looked_at == train.images:
        absent = [label for label, count in zip(summary.spec.labels, train.pixels, strict=False) if not count]
        lines += [f"never in {summary.spec.train_split}: {', '.join(absent)}"] if absent else []
    if summary.unused:
        lines.append(f"unused: {len(summary.unused)} files, such as {examples(summary.unused)}")
    return lines


def _sizes(sizes: Counter) -> str:
    if len(sizes) <= 3:
        return ", ".join(f"{width} x {height}" for width, height in sorted(sizes))
    smallest = min(sizes, key=lambda size: size[0] * size[1])
    largest = max(sizes, key=lambda size: size[0] * size[1])
    return f"{smallest[0]} x {smallest[1]} to {largest[0]} x {largest[1]} ({len(sizes)} sizes)"


def _hex(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)
