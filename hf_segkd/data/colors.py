"""Colors made from class numbers, where a dataset has no palette of its own."""


def bit_color(index: int) -> tuple[int, int, int]:
    """Color `index` of Pascal VOC: its bits, three at a time, fill red, green and blue from the highest bit down.

    Args:
        index (`int`): At least 0; different below 2^24. Index 0 is black.

    Returns:
        `tuple[int, int, int]`: RGB, 0 to 255.
    """
    channels = [0, 0, 0]
    for position in range(24):
        channels[position % 3] |= (index >> position & 1) << (7 - position // 3)
    return tuple(channels)


def distinct_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    """`count` different colors without black, the same in every run."""
    return tuple(bit_color(index) for index in range(1, count + 1))
