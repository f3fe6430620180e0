"""Training that knows of int8: the student computes on values rounded as its exported file will hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# The axis of a weight that counts output channels, by the function it is used in.
_CHANNELS = {F.conv2d: 0, F.conv_transpose2d: 1, F.linear: 0}
# 7 bits, as in hf_segkd.deployment.onnx_export.quantize_static.
_LARGEST_WEIGHT = 64
_LARGEST_BYTE = 255

# Which map: the number of the layer in the order of the calls, and whether it is what the layer reads.
_Map = tuple[int, bool]


class Int8Rounding(TorchFunctionMode):
    """Rounds what convolutions and linear layers read and write as the int8 file of `hf-segkd export` does.

    Weights have a scale for each output channel, maps one for the whole tensor. The ranges of maps are found once, by
    [`calibrate`], and kept, as in the file. The gradient passes through the rounding as if it were not there, and is
    zero for values outside the range. Where a batch norm follows a convolution, its result is rounded: the file holds
    both as one.
    """

    def __init__(self):
        super().__init__()
        self._ranges: dict[_Map, tuple[Tensor, Tensor]] = {}
        self._before_norm: set[int] = set()
        self._layer = 0
        self._unrounded: tuple[int, Tensor] | None = None

    @torch.no_grad()
    def calibrate(self, run: Callable[[Tensor], object], images: Iterable[Tensor]) -> None:
        """Find the ranges of all maps: the mean over whole training images of the least and the largest value.

        Args:
            run (`Callable`): The student in evaluation mode, of one batch of images.
            images (`Iterable[Tensor]`): Batches of one image, as `run` takes them.

        Raises:
            ValueError: Without images.
        """
        seen = _Ranges()
        for image in images:
            with seen:
                run(image)
        if not seen.maps:
            raise ValueError("quantization_aware needs at least one training image to find the ranges of maps.")
        self._ranges = {key: _grid(torch.stack(pairs).mean(dim=0)) for key, pairs in seen.maps.items()}
        self._before_norm = seen.before_norm

    def __enter__(self):
        if not self._ranges:
            raise RuntimeError("Int8Rounding does not know the ranges of maps yet. Call calibrate first.")
        self._layer, self._unrounded = 0, None
        return super().__enter__()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in _CHANNELS:
            layer, self._layer = self._layer, self._layer + 1
            x, weight, *rest = args
            weight = round_weight(weight, _CHANNELS[function])
            y = function(round_map(x, *self._ranges[layer, True]), weight, *rest, **kwargs)
            if layer not in self._before_norm:
                return round_map(y, *self._ranges[layer, False])
            self._unrounded = layer, y
            return y
        y = function(*args, **kwargs)
        if function is F.batch_norm and self._unrounded is not None and args[0] is self._unrounded[1]:
            return round_map(y, *self._ranges[self._unrounded[0], False])
        return y


class _Ranges(TorchFunctionMode):
    """Sees the least and the largest value of each map, of one image at a time, and where batch norms follow."""

    def __init__(self):
        super().__init__()
        self.maps: dict[_Map, list[Tensor]] = {}
        self.before_norm: set[int] = set()

    def __enter__(self):
        self._layer, self._last = 0, None
        return super().__enter__()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        y = function(*args, **(kwargs or {}))
        if function in _CHANNELS:
            self._see((self._layer, True), args[0])
            self._see((self._layer, False), y)
            self._last = self._layer, y
            self._layer += 1
        elif function is F.batch_norm and self._last is not None and args[0] is self._last[1]:
            layer = self._last[0]
            self.before_norm.add(layer)
            self.maps[layer, False].pop()
            self._see((layer, False), y)
        return y

    def _see(self, key: _Map, x: Tensor) -> None:
        self.maps.setdefault(key, []).append(torch.stack(torch.aminmax(x.detach().float())))


def round_weight(weight: Tensor, axis: int) -> Tensor:
    """A weight with 129 values for each of its output channels, evenly spread around 0."""
    others = [other for other in range(weight.ndim) if other != axis]
    scale = _scale(weight.detach().float().abs().amax(dim=others), _LARGEST_WEIGHT)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(
        weight.float(), scale, zero, axis, -_LARGEST_WEIGHT, _LARGEST_WEIGHT
    ).to(weight.dtype)


def round_map(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """A map with 256 values, `scale` apart, of which number `zero` is 0."""
    return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, _LARGEST_BYTE).to(x.dtype)


def _grid(ends: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of 256 values from the first end (or 0) to the second."""
    lowest, highest = ends[0].clamp(max=0), ends[1].clamp(min=0)
    scale = _scale(highest - lowest, _LARGEST_BYTE)
    return scale, (-lowest / scale).round().to(torch.int32)


def _scale(span: Tensor, steps: int) -> Tensor:
    """The distance of two neighbors; a tensor of zeros stays one."""
    return span.clamp(min=torch.finfo(torch.float32).tiny * steps) / steps
