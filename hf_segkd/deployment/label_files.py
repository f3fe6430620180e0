"""Predicted label maps as files: for people (colors, overlays), for programs (ids), for test servers."""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dataset_builders.files import SUFFIXES, check_heic, walk
from hf_segkd.data.colors import distinct_colors
from hf_segkd.data.pixels import needs_bands
from hf_segkd.reports.pictures import Palette, overlay

# Where the VOC server looks in the archive.
VOC_FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"


@dataclass(frozen=True)
class LabelFormat:
    """One way of writing label maps.

    Args:
        write (`Callable`): From class ids (H, W), the image and the palette to a picture.
        folder (`str`, *optional*, defaults to `""`): Where the files lie inside the output folder and the archive.
        archive (`str`, *optional*, defaults to `".zip"`): `".zip"` or `".tar.gz"`, what the server takes.
        num_labels (`int`, *optional*): Classes that a model must have for this format; any by default.
    """

    write: Callable[[np.ndarray, Image.Image, Palette], Image.Image]
    folder: str = ""
    archive: str = ".zip"
    num_labels: int | None = None


def _indexed(labels: np.ndarray, image: Image.Image, palette: Palette) -> Image.Image:
    picture = Image.fromarray(labels.astype(np.uint8))
    if len(palette) <= 256:
        picture.putpalette([channel for color in palette for channel in color])
    return picture


def _ids(labels: np.ndarray, image: Image.Image, palette: Palette) -> Image.Image:
    # 16 bits where a byte would wrap.
    return Image.fromarray(labels.astype(np.uint8 if len(palette) <= 256 else np.uint16))


def _blended(labels: np.ndarray, image: Image.Image, palette: Palette) -> Image.Image:
    return overlay(image, labels, palette)


def _cityscapes(labels: np.ndarray, image: Image.Image, palette: Palette) -> Image.Image:
    # Here, because the builders import `datasets`, which `hf-segkd predict --help` does not need.
    from dataset_builders.cityscapes import CLASSES, LABEL_IDS

    ids = {name: index for index, name in LABEL_IDS.items()}
    return Image.fromarray(np.array([ids[name] for name in CLASSES], dtype=np.uint8)[labels])


def _ade20k(labels: np.ndarray, image: Image.Image, palette: Palette) -> Image.Image:
    return Image.fromarray((labels + 1).astype(np.uint8))  # 0 means "other" there


FORMATS: dict[str, LabelFormat] = {
    "palette": LabelFormat(_indexed),
    "overlay": LabelFormat(_blended),
    "ids": LabelFormat(_ids),
    "cityscapes": LabelFormat(_cityscapes, num_labels=19),
    "voc": LabelFormat(_indexed, VOC_FOLDER, ".tar.gz", num_labels=21),
    "ade20k": LabelFormat(_ade20k, num_labels=150),
}


def check_format(name: str, num_labels: int) -> LabelFormat:
    """The format of that name.

    Raises:
        ValueError: If a model of `num_labels` classes cannot be written in it.
    """
    label_format = FORMATS[name]
    if label_format.num_labels not in (None, num_labels):
        raise ValueError(
            f"Format {name!r} is for models of {label_format.num_labels} classes, this one has {num_labels}. "
            "Use a model trained on that dataset, or the format 'palette', 'overlay' or 'ids'."
        )
    return label_format


def find_images(sources: Sequence[str | Path], left_out: Collection[Path] = ()) -> dict[str, Path]:
    """Every image that files, folders and globs name, by its name without suffix, in order.

    Args:
        sources (`Sequence[str | Path]`): Files; folders, searched through for image files, or where there are none for
            `.npy`; globs such as `"a/**/*.png"`, whose `**` follows no links.
        left_out (`Collection[Path]`, *optional*): Resolved paths that folders and globs do not mean, such as earlier
            label maps.

    Raises:
        ValueError: If a source has no image, or photos that cannot be read here; there is no source; or two images
            would be written to one file.
    """
    if not sources:
        raise ValueError("No images given. Name files, folders or globs, or a --dataset.")
    images: dict[str, Path] = {}
    for source in map(str, sources):
        if Path(source).is_file():
            found = [Path(source)]
        else:
            meant = [path for path in _listed(source) if path.is_file() and path.resolve() not in left_out]
            pictures = [path for path in meant if path.suffix.lower() != ".npy"]
            found = pictures if Path(source).is_dir() and pictures else meant
        if not found:
            raise ValueError(f"No image at '{source}'. Looked for a file, a folder with images, and a glob.")
        for path in found:
            if images.setdefault(path.stem, path).resolve() != path.resolve():
                raise ValueError(
                    f"'{images[path.stem]}' and '{path}' would both be written as {path.stem}: rename one."
                )
    return images


def _listed(source: str) -> list[Path]:
    if Path(source).is_dir():
        files = walk(Path(source), Path(source))
        check_heic(files)
        return sorted(file.path for file in files.values() if file.path.suffix.lower() in (*SUFFIXES, ".npy"))
    # Not the module glob: its ** follows links, also one that leads to a folder above.
    anchor = Path(source).anchor
    pattern = os.path.relpath(source, anchor) if anchor else source
    return sorted(path for path in Path(anchor or ".").glob(pattern) if not path.name.startswith("."))


def upright(picture: Image.Image) -> Image.Image:
    """A picture as RGB, turned where its camera noted how it was held.

    Raises:
        OSError: If its file is damaged.
        ValueError: If it holds more than 8-bit RGB, which would be cut off.
    """
    if reason := needs_bands(picture):
        raise ValueError(f"The image {reason}. This model reads 8-bit RGB.")
    return ImageOps.exif_transpose(picture).convert("RGB")


def palette_of(id2label: dict[int, str]) -> Palette:
    """The official colors where the classes are those of a known dataset, else distinct ones."""
    from dataset_builders import DATASETS  # imports `datasets`, which --help does without

    labels = tuple(id2label[index] for index in sorted(id2label))
    for spec in DATASETS.values():
        if spec.labels == labels:
            return spec.palette
    return distinct_colors(len(labels))


def label_path(output_dir: str | Path, name: str, label_format: LabelFormat) -> Path:
    """File of the image called `name` (its own file name without suffix, as all three servers want it)."""
    return Path(output_dir) / label_format.folder / f"{name}.png"


def write_label_file(picture: Image.Image, path: Path) -> None:
    """Save a picture atomically: the file is complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as unfinished:
        picture.save(unfinished, format="PNG")


def archive_path(output_dir: str | Path, name: str) -> Path:
    """File of the archive of a format: `output_dir/name.zip` or `.tar.gz`."""
    return Path(output_dir) / f"{name}{FORMATS[name].archive}"


def write_archive(paths: Iterable[Path], archive: Path, folder: Path) -> Path:
    """Pack label files, with the folders below `folder` that the server expects, into a new archive."""
    members = [(path, path.relative_to(folder).as_posix()) for path in paths]
    with whole_file(archive) as unfinished:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as file:  # PNGs are compressed already
                for path, member in members:
                    file.write(path, member)
        else:
            with tarfile.open(unfinished, "w:gz") as file:
                for path, member in members:
                    file.add(path, member)
    return archive


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A hidden temporary file that replaces `path` if the block succeeds and is removed if it fails."""
    unfinished = path.with_name(f".{path.name}.part")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
