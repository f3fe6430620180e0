"""Images too large for one forward pass: how much memory it would take, and windows instead."""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Of what is not weights, bytes. Fixed, so that a label map does not depend on what else the machine does.
MEMORY_LIMIT = 2 * 2**30
# Images up to this many pixels, those of Cityscapes, are always run whole.
ALWAYS_WHOLE = 1024 * 2048
# Sides of a window, pixels, the first that fits; and of the border that is cut off where windows meet.
_WINDOWS = 2048, 1536, 1024, 768, 512
_MARGIN = 128


class MemoryEstimate:
    """How many bytes one call takes at its peak, weights left out, at any image size.

    The call runs on tensors without content, so that it takes neither the memory nor the time.

    Args:
        model (`nn.Module`): The model, left as it is.
        dtype (`torch.dtype`): Of the images that it takes.
        call (`Callable`): What is estimated: from a model and `pixel_values` (1, C, H, W) to label maps.
        channels (`int`, *optional*, defaults to `3`): C.
    """

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, call: Callable[[nn.Module, Tensor], Tensor], channels: int = 3
    ):
        self.dtype = dtype
        self.channels = channels
        self.ghost = copy.deepcopy(model).to("meta").eval()
        self.call = call

    def __call__(self, size: tuple[int, int]) -> int:
        with torch.compiler.set_stance("force_eager"), torch.no_grad(), _LiveBytes() as live, _FusedAttention():
            self.call(self.ghost, torch.empty(1, self.channels, *size, device="meta", dtype=self.dtype))
        # A second copy of the image, while it is normalized.
        return live.peak + self.channels * size[0] * size[1] * self.dtype.itemsize


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are alive at the same time."""

    def __init__(self):
        super().__init__()
        self.users: Counter[int] = Counter()
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return outputs

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if not self.users[key]:
            self.now += size
            self.peak = max(self.peak, self.now)
        self.users[key] += 1
        weakref.finalize(tensor, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self.users[key] -= 1
        if not self.users[key]:
            self.now -= size
            del self.users[key]


class _FusedAttention(TorchFunctionMode):
    """Attention as it runs: without content PyTorch would write the whole matrix of weights, which no kernel does."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        query, value = args[0], args[2]
        return query.new_empty(*query.shape[:-1], value.shape[-1])


def window_side(estimate: Callable[[tuple[int, int]], int], limit: int = MEMORY_LIMIT) -> int:
    """Side in pixels of the largest square window that fits into half the limit; the smallest if none fits.

    The other half is for the image itself, its label map, and what a kernel takes beside its result.
    """
    fitting = (side for side in _WINDOWS if estimate((side, side)) <= limit // 2)
    return next(fitting, _WINDOWS[-1])


def in_windows(segment: Callable[[Tensor], Tensor], image: Tensor, side: int, margin: int = _MARGIN) -> Tensor:
    """Segment an image window by window.

    Windows overlap by twice the margin; where two meet, each gives the half that is farther from its border, so that
    every pixel is seen with at least `margin` pixels around it, those at the image's border excepted.

    Args:
        segment (`Callable`): From a window (C, h, w) to its class ids (h, w).
        image (`torch.Tensor` of shape `(C, H, W)`): Any type.
        side (`int`): Height and width of a window, pixels, more than twice the margin; an image's smaller side is
            covered as it is.
        margin (`int`, *optional*, defaults to `128`): Pixels.

    Returns:
        `torch.Tensor`: Class ids (H, W), on the device and of the type of `segment`'s.
    """
    height, width = image.shape[-2:]
    labels = None
    for top, bottom, first_row, last_row in _spans(height, side, margin):
        for left, right, first_column, last_column in _spans(width, side, margin):
            window = segment(image[:, top:bottom, left:right])
            if labels is None:
                labels = window.new_empty(height, width)
            core = window[first_row - top : last_row - top, first_column - left : last_column - left]
            labels[first_row:last_row, first_column:last_column] = core
    return labels


def _spans(length: int, side: int, margin: int) -> Iterator[tuple[int, int, int, int]]:
    """Start and end of each window along one axis, and of the part of it that counts."""
    side = min(side, length)
    done = 0
    while done < length:
        start = min(max(done - margin, 0), length - side)
        end = start + side
        until = length if end == length else end - margin
        yield start, end, done, until
        done = until
