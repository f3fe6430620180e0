"""The folder of predictions: which model made which file, and which files may be replaced."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hf_segkd.reports.files import write_json

MANIFEST = "predictions.json"
# A file that was cut short, or that a power cut has emptied, lacks the end that every PNG has.
PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


@dataclass(frozen=True)
class Predicted:
    """One image that is to be predicted.

    Args:
        path (`Path`): File of its label map.
        state (`str`): Text that changes with the image.
        source (`Path`, *optional*): The image's own file, where it has one.
    """

    path: Path
    state: str
    source: Path | None = None


def begin_predictions(
    folder: str | Path,
    made_with: dict[str, Any],
    images: dict[str, Predicted],
    overwrite: bool = False,
    archive: Path | None = None,
) -> list[str]:
    """Find what is still to be predicted, and write `predictions.json`: what the folder holds, and what made it.

    An earlier label map counts if it is complete, of the same image and made with the same model, protocol and format.
    All other files of this command are removed first, so that an interrupted command leaves no mixture.

    Args:
        folder (`str` or `Path`): Output folder.
        made_with (`dict`): What decides the label maps: fingerprint of the model, protocol, format, ...
        images (`dict[str, Predicted]`): By name.
        overwrite (`bool`, *optional*, defaults to `False`): Predict again what is there, also with other settings.
        archive (`Path`, *optional*): Archive that will be written.

    Returns:
        `list[str]`: Names of the images to predict.

    Raises:
        ValueError: If a file would be replaced that is an input or that no earlier command has predicted, or the
            folder holds label maps that were made with something else and `overwrite` is not given.
    """
    folder = Path(folder)
    earlier = read_manifest(folder)
    _check_inputs(images.values())
    files = {name: image.path.relative_to(folder).as_posix() for name, image in images.items()}
    _check_foreign(folder, [*files.values(), *([archive.name] if archive else [])], earlier)
    known = dict(earlier["files"])
    same = earlier["made_with"] in (None, made_with)
    if not same and not overwrite:
        raise ValueError(_other_settings(folder, earlier["made_with"], made_with))
    pending, stale = [], [] if same else list(known)
    for name, image in images.items():
        if overwrite or known.get(files[name]) != image.state or not is_complete(image.path):
            pending.append(name)
            stale.append(files[name])
    if pending:
        stale += earlier["archives"]
    for file in stale:
        (folder / file).unlink(missing_ok=True)
    kept = (known if same else {}) | {files[name]: image.state for name, image in images.items()}
    archives = sorted({*(earlier["archives"] if same else ()), *([archive.name] if archive else ())})
    write_json({"made_with": made_with, "archives": archives, "files": kept}, folder / MANIFEST)
    return pending


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `predictions.json` says; `made_with` is `None` where there is none.

    Raises:
        ValueError: If it cannot be read, or names a file outside the folder.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {"made_with": None, "archives": [], "files": {}}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        named = [*manifest["archives"], *manifest["files"]]
        inside = all(_is_inside(name) for name in named) and isinstance(manifest["made_with"], dict)
    except (ValueError, KeyError, TypeError):
        inside = False
    if not inside:
        raise ValueError(f"'{path}' is damaged: what the folder holds is unknown. Give another --output_dir.")
    return manifest


def own_files(folder: str | Path) -> set[Path]:
    """Resolved paths of the label maps that earlier commands have written into a folder."""
    return {(Path(folder) / file).resolve() for file in read_manifest(Path(folder))["files"]}


def is_complete(path: Path) -> bool:
    """Whether a file is there: a PNG up to its end, a clip, which is written beside its place, not empty."""
    if path.suffix != ".png":
        return path.is_file() and path.stat().st_size > 0
    if not path.is_file() or path.stat().st_size < len(PNG_END):
        return False
    with path.open("rb") as file:
        file.seek(-len(PNG_END), os.SEEK_END)
        return file.read() == PNG_END


def check_name(name: str) -> str:
    """A name from a dataset that is to become a file's; folders in it become folders.

    Raises:
        ValueError: If it would lead out of the output folder, or no file system takes it.
    """
    if not _is_inside(name) or any(ord(letter) < 32 for letter in name):
        raise ValueError(f"The dataset calls an image {name!r}, which cannot be the name of a file in a folder.")
    return name


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and "\\" not in name and not path.is_absolute() and ".." not in path.parts and path.name != ""


def _check_inputs(images: Iterable[Predicted]) -> None:
    # By device and inode, so that links and other spellings of a name are recognized.
    images = list(images)
    inputs = {_identity(image.source): image.source for image in images if image.source is not None}
    for image in images:
        if image.path.exists() and _identity(image.path) in inputs:
            raise ValueError(
                f"'{image.path}' is one of the images to predict and would be replaced by its label map. "
                "Give another --output_dir."
            )


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _check_foreign(folder: Path, files: list[str], earlier: dict[str, Any]) -> None:
    own = {*earlier["files"], *earlier["archives"]}
    foreign = [file for file in files if file not in own and os.path.lexists(folder / file)]
    if foreign:
        raise ValueError(
            f"'{folder / foreign[0]}' is in the way, and hf-segkd predict has not written it ({len(foreign)} such "
            "files). It is never replaced, also not with --overwrite: give another --output_dir."
        )


def _other_settings(folder: Path, was: dict[str, Any], now: dict[str, Any]) -> str:
    keys = [key for key in {**was, **now} if was.get(key) != now.get(key)]
    listed = "; ".join(f"{key}: {_short(was.get(key))}, now {_short(now.get(key))}" for key in keys)
    return (
        f"'{folder}' holds label maps that were made with something else ({listed}). Give another --output_dir, or "
        "--overwrite to remove them and predict again."
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:12] + "..."
