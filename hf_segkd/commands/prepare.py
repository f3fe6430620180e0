"""Prepare a dataset: check its files, show what was understood, write parquet files or push them to the Hub.

    hf-segkd prepare photos --labels labels.txt --output photos_prepared
    hf-segkd prepare camvid --data_dir CamVid --output camvid_prepared

The folder written holds all images; train on it anywhere with `--dataset camvid_prepared`. Look at `overview.png`
before you train.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dataset_builders import BUILDERS, DataArguments, open_from_arguments
from dataset_builders.arguments import find_data
from hf_segkd.commands.flags import CommandParser, add_fields
from hf_segkd.console import plain_logs, readable_errors

SOFTWARE = "hf-segkd prepare"


def main(argv: list[str] | None = None) -> None:
    """Prepare what the command line names."""
    arguments = parser().parse_args(argv)
    plain_logs()
    from dataset_builders.prepare import prepare
    from hf_segkd.reports.data_summary import overview, summarize, summary_text
    from hf_segkd.training.checks import check_data

    picture_path = Path(arguments.output or ".", "overview.png")
    with readable_errors():
        check_replaceable(picture_path)
        arguments.data = None if arguments.dataset in BUILDERS else arguments.dataset
        find_data(arguments)
        dataset = open_from_arguments(arguments)
        check_data(dataset)
        # Machines read stdout with --json: people's lines go to stderr then.
        with contextlib.redirect_stdout(sys.stderr if arguments.json else sys.stdout):
            prepare(dataset, arguments.output, arguments.push_to_hub, arguments.num_proc)
            summary = summarize(dataset)
            picture = overview(dataset)
            if picture is not None:
                mark = PngInfo()
                mark.add_text("Software", SOFTWARE)
                picture.save(picture_path, pnginfo=mark)
                print(f"{summary_text(summary)}\nLook at {picture_path} before you train.")
    if arguments.json:
        print(json.dumps(summary.as_dict(), indent=2))


def check_replaceable(path: Path) -> None:
    """Refuse to draw over a file that an earlier `prepare` has not drawn.

    Raises:
        ValueError: If there is one.
    """
    if not path.exists():
        return
    try:
        with Image.open(path) as picture:
            drawn_here = picture.info.get("Software") == SOFTWARE
    except OSError:
        drawn_here = False
    if not drawn_here:
        raise ValueError(f"'{path}' is in the way of the picture that is drawn. Move it, or give --output.")


def parser() -> argparse.ArgumentParser:
    """Command line of this command."""
    parser = CommandParser("prepare", __doc__)
    add = parser.add_argument
    add("dataset", help="your own folder, a Hub id, or one of " + ", ".join(BUILDERS))
    add("--data_dir", help="folder of the raw dataset")
    add("--output", help="new folder for parquet files")
    add("--push_to_hub", metavar="ID", help="Hub id to push to, user/name")
    add("--num_proc", type=int, help="processes that prepare the data (default: all cores, for 2000 images and more)")
    add("--json", action="store_true", help="print what was understood as JSON")
    add_fields(parser, DataArguments, "data")
    return parser
