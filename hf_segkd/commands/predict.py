"""Segment images and clips: label maps, overlays, class ids, the files that a test server wants, or overlay videos.

    hf-segkd predict MODEL photos/ more/*.jpg --output_dir OUT
    hf-segkd predict MODEL clip.mp4 --side_by_side OTHER --output_dir OUT
    hf-segkd predict MODEL leftImg8bit/test --format cityscapes --archive --output_dir OUT
    hf-segkd predict MODEL --dataset camvid --data_dir CamVid --split test --output_dir OUT

MODEL is a folder, a Hub id or an original checkpoint (.pth). Images that are done already are skipped: run an
interrupted command again to continue. `predictions.json` says which model, protocol and format made the label maps;
another one is refused in the same folder, and no file is replaced that this command has not written. An image that
would take more than 2 GiB is run in windows, with a note; --mode whole insists.

Videos (with `pip install 'hf-segkd[video]'`) and animated GIFs and WebPs become overlay clips, every frame at its own
time and size, without sound. They are named by file or glob; folders are searched for pictures.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from dataset_builders import DataArguments, open_from_arguments
from dataset_builders.arguments import find_data
from dataset_builders.files import SUFFIXES
from hf_segkd.commands.flags import CommandParser, add_dataset, add_fields
from hf_segkd.console import plain_logs, readable_errors
from hf_segkd.deployment.label_files import (
    FORMATS,
    LabelFormat,
    archive_path,
    check_format,
    find_images,
    label_path,
    palette_of,
    upright,
    write_archive,
    write_label_file,
)
from hf_segkd.deployment.prediction_folder import Predicted, begin_predictions, check_name, own_files
from hf_segkd.evaluation.settings import InferenceProtocol, RunningArguments
from hf_segkd.reports.files import model_names

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from hf_segkd.evaluation.segmenter import BaseSegmenter
    from hf_segkd.models import Bands


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image or clip of the command line: how to read it, text that changes with it, its file where it has one."""

    read: Callable[[], bytes]
    state: str
    file: Path | None = None
    is_clip: bool = False


def main(argv: list[str] | None = None) -> list[Path]:
    """Predict as the command line says and return the files written or found."""
    arguments = parser().parse_args(argv)
    plain_logs()
    folder = Path(arguments.output_dir)
    with readable_errors(ValueError, OSError, ImportError):
        find_data(arguments)
        protocol = InferenceProtocol.from_arguments(arguments)
        pictures, bands = pictures_of(arguments)
        check_clips(arguments, pictures)
        segmenter, made_by = load(arguments, arguments.model, protocol, bands)
        label_format = check_format(arguments.format, segmenter.num_labels)
        clips = {name: picture for name, picture in pictures.items() if picture.is_clip}
        draw, made_beside = clip_drawing(arguments, segmenter, protocol) if clips else (None, {})
        paths = {name: output_path(folder, name, picture, label_format) for name, picture in pictures.items()}
        images = {name: Predicted(paths[name], picture.state, picture.file) for name, picture in pictures.items()}
        made_with = {**made_by, "format": arguments.format, "protocol": str(protocol), "dtype": arguments.dtype}
        archive = archive_path(folder, arguments.format) if arguments.archive else None
        pending = begin_predictions(folder, made_with | made_beside, images, arguments.overwrite, archive)
    still = {name: paths[name] for name in pending if name not in clips}
    failed = predict_pictures(pictures, still, segmenter, label_format)
    failed += predict_clips(clips, {name: paths[name] for name in pending if name in clips}, draw)
    kind = "files" if clips else "label maps"
    done = f"{len(pending) - len(failed)} {kind} written to {folder}"
    earlier = len(paths) - len(pending)
    print(f"{done}, {earlier} were there already" if earlier else done)
    if failed:
        sys.exit("error: left out, for they cannot be read or predicted:\n  " + "\n  ".join(failed))
    if archive:
        with readable_errors():
            print(write_archive([path for name, path in paths.items() if name not in clips], archive, folder))
    return list(paths.values())


def predict_pictures(
    pictures: dict[str, Picture], paths: dict[str, Path], segmenter: BaseSegmenter, label_format: LabelFormat
) -> list[str]:
    """Write the label map of each picture; return those that failed, with the reason."""
    from hf_segkd.evaluation.progress import progress

    palette = palette_of(segmenter.id2label)
    failed = []
    for name, path in progress(paths.items(), len(paths), "predicting"):
        try:
            image, shown = read(pictures[name].read(), segmenter.bands)
            picture = label_format.write(segmenter(image), shown, palette)
        except Exception as error:  # whatever one picture does to Pillow or to the memory: the others are predicted
            failed.append(f"{name}: {reason(error)}")
            continue
        with readable_errors():
            write_label_file(picture, path)
    return failed


def predict_clips(clips: dict[str, Picture], paths: dict[str, Path], draw: Callable) -> list[str]:
    """Write the overlay of each clip; return those that failed, with the reason."""
    from hf_segkd.deployment.clips import write_clip

    failed = []
    for name, path in paths.items():
        try:
            print(f"{path}: {write_clip(clips[name].file, path, draw)}", flush=True)
        except Exception as error:  # as with pictures
            failed.append(f"{name}: {reason(error)}")
    return failed


def reason(error: Exception) -> str:
    """An error on one line, never empty."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def check_clips(arguments: argparse.Namespace, pictures: dict[str, Picture]) -> None:
    """Check that the clips among these files can be read, and `--side_by_side` fits them.

    Raises:
        ImportError: If there is a video and PyAV is not installed.
        ValueError: If `--side_by_side` is given and not all files are clips.
    """
    from hf_segkd.deployment.clips import check_installed

    check_installed([picture.file for picture in pictures.values() if picture.is_clip])
    if arguments.side_by_side and not all(picture.is_clip for picture in pictures.values()):
        still = next(name for name, picture in pictures.items() if not picture.is_clip)
        raise ValueError(f"--side_by_side makes clips, and {still!r} is no video and no animation. Leave one out.")


def clip_drawing(arguments: argparse.Namespace, segmenter: BaseSegmenter, protocol: InferenceProtocol):
    """What draws the frames of clips, and what the folder's manifest says of the second model."""
    from hf_segkd.deployment.clips import drawing

    if not arguments.side_by_side:
        return drawing({arguments.model: segmenter}), {}
    if arguments.side_by_side == arguments.model:
        raise ValueError(f"--side_by_side shows a second model, got {arguments.model!r} twice.")
    other, made_by = load(arguments, arguments.side_by_side, protocol, None)
    titles = model_names([arguments.model, arguments.side_by_side])
    return drawing(dict(zip(titles, (segmenter, other), strict=True))), {"side_by_side": made_by["model"]}


def output_path(folder: Path, name: str, picture: Picture, label_format: LabelFormat) -> Path:
    """The file that is made of a picture or a clip."""
    from hf_segkd.deployment.clips import clip_name

    return folder / clip_name(picture.file) if picture.is_clip else label_path(folder, name, label_format)


def read(content: bytes, bands: Bands | None) -> tuple[Image.Image | np.ndarray, Image.Image]:
    """An image as the segmenter takes it, and a picture of it to draw on.

    Raises:
        OSError: If the file is damaged.
        Unreadable: If it holds something else than it should.
    """
    import PIL.Image

    from hf_segkd.data.pixels import misfit, read_pixels, refusal
    from hf_segkd.data.raw import Unreadable
    from hf_segkd.reports.pictures import visible

    if bands is None:
        if reason := refusal(content):
            raise Unreadable(f"{reason.partition(': --bands')[0]}; the model reads 8-bit RGB")
        picture = upright(PIL.Image.open(io.BytesIO(content)))
        return picture, picture
    array = read_pixels(content)
    if wrong := misfit(array, bands):
        raise Unreadable(f"{wrong} ({', '.join(bands.names)})")
    return array, visible(array, bands.names)


def load(arguments: argparse.Namespace, model: str, protocol: InferenceProtocol, bands: Bands | None):
    """The segmenter of a model on the command line, and what the folder's manifest says of the model."""
    import torch

    from hf_segkd.evaluation.segmenter import Segmenter, default_device
    from hf_segkd.loading.any_model import load_model
    from hf_segkd.loading.bands import check_reads
    from hf_segkd.loading.fingerprint import fingerprint

    model, processor = load_model(model, trust_remote_code=arguments.trust_remote_code)
    if arguments.dataset:
        check_reads(processor, bands)
    made_by = {"model": fingerprint(model, processor)}
    if bands is not None:
        made_by["images"] = str(bands)
    model = model.to(getattr(torch, arguments.dtype))
    running = torch.compile(model) if arguments.compile else model
    return Segmenter(running, processor, protocol, arguments.device or default_device(), bands), made_by


def pictures_of(arguments: argparse.Namespace) -> tuple[dict[str, Picture], Bands | None]:
    """Name -> picture, of every image that the command line means, and what a dataset's hold.

    Raises:
        ValueError: If there is none, or two images have one name.
    """
    from hf_segkd.deployment.clips import is_clip

    if not arguments.dataset:
        files = find_images(arguments.files, own_files(arguments.output_dir))
        return {
            name: Picture(path.read_bytes, file_state(path), path, is_clip(path)) for name, path in files.items()
        }, None
    if arguments.files:
        raise ValueError("Give image files or a dataset (--data, --dataset), not both.")
    import datasets

    dataset = open_from_arguments(arguments)
    rows = dataset.split(arguments.split or dataset.spec.eval_split).select_columns(["image", "image_id"])
    stored = rows.with_format(None).cast_column("image", datasets.Image(decode=False))
    found: dict[str, Picture] = {}
    for index, row in enumerate(stored):
        name = name_of(row["image_id"])
        if name in found:
            raise ValueError(f"Two images of the dataset are called {name!r}: their label maps would be one file.")
        picture = partial(_content, stored, index)
        if row["image"]["bytes"] is None:
            path = Path(row["image"]["path"])
            found[name] = Picture(picture, file_state(path), path)
        else:
            found[name] = Picture(picture, hashlib.sha256(row["image"]["bytes"]).hexdigest())
    return found, dataset.bands


def name_of(image_id: str) -> str:
    """Name of an image's label map: its id, without the suffix of a picture."""
    path = PurePosixPath(check_name(str(image_id)))
    return str(path.with_suffix("") if path.suffix.lower() in SUFFIXES else path)


def file_state(path: Path) -> str:
    """Size and time of a file, which change with it."""
    status = path.stat()
    return f"{status.st_size} bytes, {status.st_mtime_ns}"


def _content(stored, index: int) -> bytes:
    image = stored[index]["image"]
    return Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]


def parser() -> argparse.ArgumentParser:
    """Command line of this command."""
    parser = CommandParser("predict", __doc__)
    add = parser.add_argument
    add("model", help="folder, Hub id or original checkpoint (.pth)")
    add("files", nargs="*", help="image files, clips, folders (searched for images) or quoted globs")
    add_dataset(parser, "a dataset's split instead of files")
    add("--split", help="train, validation or test (default: the dataset's validation split)")
    add("--output_dir", required=True, help="folder for the label files")
    add("--format", default="palette", choices=sorted(FORMATS), help="cityscapes, voc, ade20k: for their test servers")
    add("--archive", action="store_true", help="pack the files as the test server wants them")
    add("--side_by_side", metavar="MODEL", help="clips show a second model of the same classes beside the first")
    add("--overwrite", action="store_true", help="predict again what is there already, also with other settings")
    add_fields(parser, DataArguments, "data")
    add_fields(parser, InferenceProtocol, "protocol")
    add_fields(parser, RunningArguments, "running")
    # Scores need one protocol for all images; here a picture of any size must come out.
    parser.set_defaults(mode="auto")
    return parser
