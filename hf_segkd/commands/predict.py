"""Segment images: colored label maps, overlays, class ids, or the files that a test server wants.

    hf-segkd predict MODEL photos/ more/*.jpg --output_dir OUT
    hf-segkd predict MODEL leftImg8bit/test --format cityscapes --archive --output_dir OUT
    hf-segkd predict MODEL --dataset camvid --data_dir CamVid --split test --output_dir OUT

MODEL is a folder, a Hub id or an original checkpoint (.pth). Images that are done already are skipped: run an
interrupted command again to continue.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image

from dataset_builders import DataArguments, open_from_arguments
from hf_segkd.commands.flags import CommandParser, add_fields
from hf_segkd.console import plain_logs, readable_errors
from hf_segkd.deployment.label_files import (
    FORMATS,
    check_format,
    find_images,
    label_path,
    palette_of,
    upright,
    write_archive,
    write_label_file,
)
from hf_segkd.evaluation.settings import InferenceProtocol, RunningArguments


def main(argv: list[str] | None = None) -> list[Path]:
    """Predict as the command line says and return the files written or found."""
    arguments = parser().parse_args(argv)
    plain_logs()
    from hf_segkd.evaluation.progress import progress

    with readable_errors():
        protocol, images = InferenceProtocol.from_arguments(arguments), images_of(arguments)
        segmenter = load(arguments, protocol)
        label_format = check_format(arguments.format, segmenter.num_labels)
    palette = palette_of(segmenter.id2label)
    paths = {name: label_path(arguments.output_dir, name, label_format) for name in images}
    pending = [name for name, path in paths.items() if arguments.overwrite or not path.is_file()]
    failed = []
    for name in progress(pending, len(pending), "predicting"):
        try:
            image = upright(images[name]())
        except OSError as error:
            failed.append(f"{name}: {error}")
            continue
        write_label_file(label_format.write(segmenter(image), image, palette), paths[name])
    done = f"{len(pending) - len(failed)} label maps written to {arguments.output_dir}"
    earlier = len(paths) - len(pending)
    print(f"{done}, {earlier} were there already" if earlier else done)
    if failed:
        sys.exit("Unreadable, and left out:\n  " + "\n  ".join(failed))
    if arguments.archive:
        print(write_archive(list(paths.values()), arguments.output_dir, arguments.format, label_format))
    return list(paths.values())


def load(arguments: argparse.Namespace, protocol: InferenceProtocol):
    """The segmenter of the model on the command line."""
    import torch

    from hf_segkd.evaluation.segmenter import Segmenter, default_device
    from hf_segkd.loading.any_model import load_model

    model, processor = load_model(arguments.model, trust_remote_code=arguments.trust_remote_code)
    model = model.to(getattr(torch, arguments.dtype))
    running = torch.compile(model) if arguments.compile else model
    return Segmenter(running, processor, protocol, arguments.device or default_device())


def images_of(arguments: argparse.Namespace) -> dict[str, Callable]:
    """Name -> function that opens it, of every image that the command line means."""
    if not arguments.dataset:
        return {name: partial(Image.open, path) for name, path in find_images(arguments.files).items()}
    if arguments.files:
        raise ValueError("Give image files or a --dataset, not both.")
    dataset = open_from_arguments(arguments)
    rows = dataset.split(arguments.split or dataset.spec.eval_split)
    pictures = rows.select_columns("image")
    return {Path(name).stem: partial(_picture, pictures, index) for index, name in enumerate(rows["image_id"])}


def _picture(rows, index: int) -> Image.Image:
    return rows[index]["image"]


def parser() -> argparse.ArgumentParser:
    """Command line of this command."""
    parser = CommandParser("predict", __doc__)
    add = parser.add_argument
    add("model", help="folder, Hub id or original checkpoint (.pth)")
    add("files", nargs="*", help="image files, folders (searched through) or quoted globs")
    add("--dataset", help="a dataset's split instead of files: a builder's name, a folder or a Hub id")
    add("--data_dir", help="folder of the raw dataset")
    add("--split", help="train, validation or test (default: the dataset's validation split)")
    add("--output_dir", required=True, help="folder for the label files")
    add("--format", default="palette", choices=sorted(FORMATS), help="cityscapes, voc, ade20k: for their test servers")
    add("--archive", action="store_true", help="pack the files as the test server wants them")
    add("--overwrite", action="store_true", help="predict again what is there already")
    add_fields(parser, DataArguments, "data")
    add_fields(parser, InferenceProtocol, "protocol")
    add_fields(parser, RunningArguments, "running")
    return parser
