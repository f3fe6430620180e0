"""Exports of labeling tools that hold shapes rather than masks."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dataset_builders.formats.ade20k_full import is_ade20k_full, read_ade20k_full
from dataset_builders.formats.coco import is_coco, read_coco
from dataset_builders.formats.label_studio import is_label_studio, read_label_studio
from dataset_builders.formats.labelme import is_labelme, read_labelme
from dataset_builders.formats.shapes import Export, LabeledImage, Shape, draw_mask
from dataset_builders.formats.supervisely import is_supervisely, read_supervisely
from dataset_builders.formats.yolo import is_yolo, read_yolo
from hf_segkd.values import did_you_mean

__all__ = ["FORMATS", "Export", "LabeledImage", "Shape", "draw_mask", "find_format", "read_export"]


class Format(NamedTuple):
    """How a kind of export is recognized and read."""

    recognizes: Callable[[Path], bool]
    read: Callable[[Path], Export]


FORMATS: dict[str, Format] = {
    "coco": Format(is_coco, read_coco),
    "labelme": Format(is_labelme, read_labelme),
    "label_studio": Format(is_label_studio, read_label_studio),
    "supervisely": Format(is_supervisely, read_supervisely),
    "yolo": Format(is_yolo, read_yolo),
    "ade20k_full": Format(is_ade20k_full, read_ade20k_full),
}


def find_format(folder: str | Path) -> str | None:
    """Name of the one format that a folder's files are in, `None` if there are no shapes in it.

    Raises:
        ValueError: The files of more than one format lie there.
    """
    found = [name for name, form in FORMATS.items() if form.recognizes(Path(folder))]
    if len(found) > 1:
        raise ValueError(f"{folder} holds files of several tools: {', '.join(found)}. Say which with --data_format.")
    return found[0] if found else None


def read_export(folder: str | Path, name: str | None = None) -> Export:
    """Read the export in a folder.

    Args:
        folder (`str` or `Path`): Pictures and annotation files, in the layout that the tool writes.
        name (`str`, *optional*): Key of `FORMATS`; recognized from the files by default.

    Raises:
        ValueError: An unknown format, none that fits, or a file that does not hold what its format asks for.
    """
    if name is not None and name not in FORMATS:
        raise ValueError(f"Unknown format '{name}'.{did_you_mean(name, FORMATS)} Formats: {', '.join(FORMATS)}.")
    name = name or find_format(folder)
    if name is None:
        raise ValueError(f"{folder} holds no annotations of {', '.join(FORMATS)}. Masks need no --data_format.")
    return FORMATS[name].read(Path(folder))
