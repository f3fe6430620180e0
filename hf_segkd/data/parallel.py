"""The same work on many files: in threads, in order, with a progress bar on a terminal."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm import tqdm

THREADS = min(16, os.cpu_count() or 1)  # decoding pictures and hashing release Python's lock


def in_threads(work: Callable[[Any], Any], items: Sequence, title: str) -> Iterator[Any]:
    """Yield `work(item)` for each item, in their order; at most a few results per thread wait at any time.

    Args:
        work (`Callable`): Called in a thread.
        items (`Sequence`): What it is called with.
        title (`str`): Shown before the progress bar, which appears on terminals only.
    """
    ahead = 4 * THREADS
    with ThreadPoolExecutor(THREADS) as threads, tqdm(total=len(items), desc=title, disable=None) as progress:
        for start in range(0, len(items), ahead):
            for result in threads.map(work, items[start : start + ahead]):
                progress.update()
                yield result
