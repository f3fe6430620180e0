"""What a user sees of a command: log lines, and one readable message instead of a traceback."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class TrainingFault(RuntimeError):
    """What ends a training that had begun, in one paragraph: what happened, at which step, and what to do."""


@contextmanager
def readable_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of these kinds, by default `ValueError` and `OSError`, into `error: ...` on stderr, exit code 1.

    Scripts wrap what happens before any compute: reading the recipe, the data and the models; around the training
    only [`TrainingFault`], because nothing else is expected there. Set `HF_SEGKD_TRACEBACK=1` to see where an error
    comes from.
    """
    kinds = kinds or (ValueError, OSError)
    try:
        yield
    except kinds as error:
        if os.environ.get("HF_SEGKD_TRACEBACK") == "1":
            raise
        sys.exit(f"{emphasized('error:', sys.stderr)} {error}")


def emphasized(text: str, stream: TextIO) -> str:
    """Text in bold red where `stream` is a terminal that shows colors and nobody has set `NO_COLOR`; else as it is."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\033[1;31m{text}\033[0m"


def plain_logs() -> None:
    """Show what the library reports, and of the bars of other libraries, on a terminal, those of long work."""
    import datasets
    import transformers
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars

    logging.basicConfig(format="%(message)s")
    for package in ("hf_segkd", "dataset_builders"):
        logging.getLogger(package).setLevel(logging.INFO)
    downloads_are_shown = not are_progress_bars_disabled()
    # Weights are read and written in a moment, in the middle of a bar of ours. This hides downloads too.
    transformers.logging.disable_progress_bar()
    if not sys.stderr.isatty():  # in a log file, bars are carriage returns
        datasets.disable_progress_bars()
    elif downloads_are_shown:
        enable_progress_bars()
