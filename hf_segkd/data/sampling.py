"""Which items of a sequence to look at when not all can be."""


def evenly_spread(length: int, count: int) -> list[int]:
    """Positions of at most `count` items of `length`, from the first to the last, evenly spread and in order."""
    count = min(count, length)
    return [round(index * (length - 1) / max(count - 1, 1)) for index in range(count)]
