"""Segment images: coloured label maps, overlays, class ids, or the files that a test server wants.

    python scripts/predict.py FOLDER_OR_HUB_ID photos/ more/*.jpg --output_dir OUT
    python scripts/predict.py FOLDER_OR_HUB_ID leftImg8bit/test --format cityscapes --archive --output_dir OUT
    python scripts/predict.py FOLDER_OR_HUB_ID --dataset camvid --data_dir CamVid --split test --output_dir OUT

Images that are done already are skipped, so an interrupted run goes on with the same command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import HfArgumentParser

import dataset_builders
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
from hf_segkd.evaluation.arguments import add_protocol_arguments, add_running_arguments, read_protocol
from hf_segkd.evaluation.inference import predict
from hf_segkd.loading.any_model import load_with_processor
from hf_segkd.models import InputNormalization, upsamples_with_align_corners


def main(argv: list[str] | None = None) -> list[Path]:
    """Predict as the command line says and return the files written or found."""
    arguments = parser().parse_args(argv)
    plain_logs()
    with readable_errors():
        protocol, images = read_protocol(arguments), images_of(arguments)
        model, processor = load_with_processor(arguments.model, trust_remote_code=arguments.trust_remote_code)
        label_format = check_format(arguments.format, model.config.num_labels)
    palette = palette_of(model.config.id2label)
    normalization = InputNormalization.from_processor(processor).to(arguments.device)
    model = model.to(arguments.device, getattr(torch, arguments.dtype)).eval()
    align_corners = upsamples_with_align_corners(model.config)
    running = torch.compile(model) if arguments.compile else model

    paths, failed = [], []
    for number, (name, open_image) in enumerate(images.items(), start=1):
        path = label_path(arguments.output_dir, name, label_format)
        paths.append(path)
        if path.is_file() and not arguments.overwrite:
            continue
        try:
            image = upright(open_image())
        except OSError as error:
            failed.append(f"{name}: {error}")
            continue
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].to(arguments.device)
        size = (image.height, image.width)
        labels = predict(running, normalization(pixels).to(model.dtype), protocol, size, align_corners)
        write_label_file(label_format.write(labels.cpu().numpy(), image, palette), path)
        print(f"{number}/{len(images)} {path}", flush=True)
    if failed:
        sys.exit("Unreadable, and left out:\n  " + "\n  ".join(failed))
    if arguments.archive:
        print(write_archive(paths, arguments.output_dir, arguments.format, label_format))
    return paths


def images_of(arguments: argparse.Namespace) -> dict[str, Callable]:
    """Name -> function that opens it, of every image that the command line means."""
    if not arguments.dataset:
        return {name: partial(Image.open, path) for name, path in find_images(arguments.files).items()}
    if arguments.files:
        raise ValueError("Give image files or a --dataset, not both.")
    options = dataset_builders.data_options(arguments)
    spec = dataset_builders.dataset_spec(arguments.dataset, arguments.data_dir, **options)
    split = arguments.split or spec.eval_split
    rows = dataset_builders.load_split(arguments.dataset, arguments.data_dir, split, **options)
    pictures = rows.select_columns("image")
    return {Path(name).stem: partial(_picture, pictures, index) for index, name in enumerate(rows["image_id"])}


def _picture(rows, index: int) -> Image.Image:
    return rows[index]["image"]


def parser() -> argparse.ArgumentParser:
    """Command line of this script."""
    form = argparse.RawDescriptionHelpFormatter
    parser = HfArgumentParser(dataset_builders.DataArguments, description=__doc__, formatter_class=form)
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
    add_protocol_arguments(parser)
    add_running_arguments(parser)
    return parser
