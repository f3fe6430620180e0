"""Prepare a dataset: check every file, map its masks to class ids, write parquet files or push them to the Hub.

    hf-segkd prepare camvid --data_dir CamVid --output camvid_prepared
    hf-segkd prepare folder --data_dir photos --labels labels.txt --output photos_prepared

The folder written holds all images; train on it anywhere with `--dataset camvid_prepared`.
"""

from __future__ import annotations

import argparse

from dataset_builders import BUILDERS, DataArguments, open_from_arguments
from hf_segkd.commands.flags import CommandParser, add_fields
from hf_segkd.console import plain_logs, readable_errors


def main(argv: list[str] | None = None) -> None:
    """Prepare what the command line names."""
    arguments = parser().parse_args(argv)
    plain_logs()
    from dataset_builders.prepare import prepare

    with readable_errors():
        dataset = open_from_arguments(arguments)
        prepare(dataset, arguments.output, arguments.push_to_hub, arguments.num_proc)


def parser() -> argparse.ArgumentParser:
    """Command line of this command."""
    parser = CommandParser("prepare", __doc__)
    add = parser.add_argument
    add("dataset", help=", ".join(BUILDERS) + "; or a folder or Hub id that `datasets` opens")
    add("--data_dir", help="folder of the raw dataset")
    add("--output", help="new folder for parquet files")
    add("--push_to_hub", metavar="ID", help="Hub id to push to, user/name")
    add("--num_proc", type=int, help="processes that prepare the data")
    add_fields(parser, DataArguments, "data")
    return parser
