"""Which items of a sequence to look at when not all can be, and which belong together."""

import re


def evenly_spread(length: int, count: int) -> list[int]:
    """Positions of at most `count` items of `length`, from the first to the last, evenly spread and in order."""
    count = min(count, length)
    return [round(index * (length - 1) / max(count - 1, 1)) for index in range(count)]


def original_name(name: str) -> str:
    """Name of the picture that Roboflow augmented: without the `.rf.HASH` that it gives each copy."""
    return re.sub(r"\.rf\.[0-9a-zA-Z]+", "", name)
