"""Blocks of a map that is too large to be held whole."""

from collections.abc import Callable, Iterator

from torch import Tensor
from torch.utils.checkpoint import checkpoint


def blocks(length: int, size: int) -> Iterator[slice]:
    """Consecutive slices of `size` that cover `length` entries; the last may be shorter."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def recomputed(function: Callable[..., Tensor], *arguments) -> Tensor:
    """`function(*arguments)`, computed again in backward instead of keeping what it needs for it.

    What is kept of all blocks would add up to the whole map. For functions that draw nothing: the state of the random
    generators is not restored.
    """
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
