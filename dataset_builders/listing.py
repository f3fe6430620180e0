"""What a large folder holds, kept from one start to the next: looking at 100 000 files each time takes too long.

A listing is used again as long as no folder has changed: adding, removing or renaming a file changes the time of its
folder. So do the times and sizes of all files that are no pictures: lists of splits, class names, archives. A picture
that is written over in place changes none of these: `full_check` looks at each file. Folders below [`LARGE`] files are
looked at whole each time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from dataset_builders.files import MASK_SUFFIXES, RawFile, below

logger = logging.getLogger(__name__)
LARGE = 20_000  # images
MOST_OTHERS = 10_000  # folders, and files that are no pictures; with more there is no listing
FRESH = 2e9  # nanoseconds in which a further change may have the same time
Pairs = list[tuple[RawFile, RawFile | None]]


class Listing(NamedTuple):
    """Pairs of each split, pictures that are in none, and a text that changes with the files of the pairs."""

    pairs: dict[str, Pairs]
    unused: list[str]
    state: str


def files_state(pairs: dict[str, Pairs], root: str | None) -> str:
    """Text that changes with place, size and time of every file."""
    digest = hashlib.sha256()
    for split, items in pairs.items():
        for file in (file for pair in items for file in pair if file is not None):
            digest.update(f"{split} {file.fingerprint(root)}\n".encode())
    return digest.hexdigest()


def save_listing(file: Path, root: str, listing: Listing) -> None:
    """Keep the listing of a large folder, unless the folder is being changed right now."""
    if sum(map(len, listing.pairs.values())) < LARGE:
        return
    folders = _folders(root)
    if len(folders) > MOST_OTHERS or max(when for when, _ in folders.values()) > time.time_ns() - FRESH:
        return
    content = {
        "folders": folders,
        "pairs": {
            split: [[_text(image, root), mask and _text(mask, root)] for image, mask in items]
            for split, items in listing.pairs.items()
        },
        "unused": listing.unused,
        "state": listing.state,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(content), encoding="utf-8")
    unfinished.replace(file)


def load_listing(file: Path, root: str) -> Listing | None:
    """The listing that was kept, if the folders are as they were then."""
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    for place, state in content["folders"].items():
        if _state(os.path.join(root, place)) != tuple(state):
            return None
    pairs = {
        split: [(_file(image, root), mask and _file(mask, root)) for image, mask in items]
        for split, items in content["pairs"].items()
    }
    when = datetime.fromtimestamp(file.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    logger.info(
        "%s: %d images as listed on %s, no folder has changed since. If pictures or masks were written over in place: "
        "--full_check.",
        *(root, sum(map(len, pairs.values())), when),
    )
    return Listing(pairs, content["unused"], content["state"])


def _folders(root: str) -> dict[str, tuple[int, int]]:
    """Time and size of all folders, and of all files that are no pictures, by their place below `root`."""
    found = {}
    for place, _, names in os.walk(root, followlinks=True):
        others = (name for name in names if os.path.splitext(name)[1].lower() not in MASK_SUFFIXES)
        for path in (place, *(os.path.join(place, name) for name in others)):
            found[os.path.relpath(path, root)] = _state(path)
        if len(found) > MOST_OTHERS:
            break
    return found


def _state(path: str) -> tuple[int, int]:
    """Time and size; of a folder the time alone, -1 where there is nothing."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_mtime_ns, 0 if os.path.isdir(path) else status.st_size


def _text(file: RawFile, root: str) -> list[str]:
    return [below(str(file.path), root), file.member]


def _file(text: list[str], root: str) -> RawFile:
    return RawFile(Path(root, text[0]), text[1])
