"""Command-line arguments that several scripts share."""

from __future__ import annotations

import argparse
import dataclasses

import torch

from hf_segkd.evaluation.inference import AVERAGES, MODES, Protocol


def add_protocol_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one argument for each field of [`~hf_segkd.evaluation.inference.Protocol`]."""
    add = parser.add_argument_group("protocol").add_argument
    add("--mode", default="whole", choices=MODES)
    add("--window", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="window of mode slide, pixels")
    add(
        "--stride",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="its steps (default: 2/3 of the height)",
    )
    add("--scales", type=float, nargs="+", default=[1.0], help="sizes at which each image is run")
    add("--flip", action="store_true", help="run each view mirrored too")
    add("--average", default="logits", choices=AVERAGES, help="what is averaged over the views")
    add("--align_corners", action=argparse.BooleanOptionalAction, help="upsampling of logits (default: the model's)")
    add("--scale_align_corners", action="store_true", help="scale images as the original repositories do")


def read_protocol(arguments: argparse.Namespace) -> Protocol:
    """The protocol that a command line describes.

    Raises:
        ValueError: If its parts do not fit together.
    """
    fields = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Protocol)}
    return Protocol(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def add_running_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where and in which precision models run."""
    add = parser.add_argument_group("running").add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    add("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="precision of the model")
    add("--compile", action="store_true", help="compile the model first")
    add("--trust_remote_code", action="store_true", help="run the Python code that a model from the Hub brings")
    add("--num_workers", type=int, default=0, help="processes that read images")
