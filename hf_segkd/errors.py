"""One readable message instead of a traceback, for what a user can mend."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class TrainingFault(RuntimeError):
    """What ends a training that had begun, in one paragraph: what happened, at which step, and what to do."""


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn `ValueError`, `OSError` and `TrainingFault` into `error: ...` on stderr and exit code 1.

    Scripts wrap what happens before any compute: reading the recipe, the data and the models. Set
    `HF_SEGKD_TRACEBACK=1` to see where an error comes from.
    """
    try:
        yield
    except (ValueError, OSError, TrainingFault) as error:
        if os.environ.get("HF_SEGKD_TRACEBACK") == "1":
            raise
        sys.exit(f"error: {error}")
