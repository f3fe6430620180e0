"""Progress of a loop: a bar on a terminal, otherwise an occasional line."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from hf_segkd.distributed import rank

logger = logging.getLogger(__name__)

EVERY = 30.0  # seconds between two lines
Item = TypeVar("Item")


def progress(items: Iterable[Item], total: int, title: str, unit: str = "image") -> Iterator[Item]:
    """Yield the items and show how many are done and how long the rest will take, in the main process alone.

    Args:
        items (`Iterable`): What is worked on.
        total (`int`): Number of items.
        title (`str`): What is done: `"evaluating student"`.
        unit (`str`, *optional*, defaults to `"image"`): What an item is called.
    """
    if rank() > 0:
        yield from items
        return
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=title, unit=unit, dynamic_ncols=True)
        return
    start = said = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - said >= EVERY:
            said, per_second = now, done / (now - start)
            left = tqdm.format_interval((total - done) / per_second)
            logger.info("%s: %d of %d %ss, %.1f %ss/s, %s left", title, done, total, unit, per_second, unit, left)
        yield item
