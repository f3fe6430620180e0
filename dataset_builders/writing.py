"""Folders that appear whole or not at all, and what to say when the disk is full."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "a file is too large"}
CACHE = "the cache of `datasets` (HF_DATASETS_CACHE names another place)"


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to write into, which gets its name when the block ends; nothing is left of it after an error.

    Args:
        folder (`str` or `pathlib.Path`): Does not exist, or is empty.

    Yields:
        `pathlib.Path`: A hidden folder beside it. What an interrupted attempt left there is removed.

    Raises:
        ValueError: If the disk is full.
    """
    folder = Path(os.path.abspath(folder))
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        os.replace(unfinished, folder)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if is_full(error):
            raise ValueError(
                f"Cannot write {folder}: {FULL[_errno(error)]}. Nothing was left there. Free some space, or choose a "
                "folder on another disk."
            ) from error
        raise


def reason(error: Exception) -> str:
    """Why a dataset cannot be opened or prepared: the first cause, in one line, and what to do on a full disk."""
    if is_full(error):
        return f"{FULL[_errno(error)]}. Free some space for {CACHE}."
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).partition("\n")[0] or type(error).__name__


def is_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, is a disk that takes no more."""
    return _errno(error) in FULL


def _errno(error: BaseException | None) -> int | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error.errno
        error = error.__cause__ or error.__context__
    return None
