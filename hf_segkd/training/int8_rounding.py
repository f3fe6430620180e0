"""Training that knows of int8: the student computes on values rounded as its exported file will hold them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# The axis of a weight that counts output channels, by the function it is used in.
_CHANNELS = {F.conv2d: 0, F.conv_transpose2d: 1, F.linear: 0}
# 7 bits, as in hf_segkd.deployment.onnx_export.quantize_static.
_LARGEST_WEIGHT = 64
_LARGEST_BYTE = 255


class Int8Rounding(TorchFunctionMode):
    """Rounds what convolutions and linear layers read and write as the int8 file of `hf-segkd export` does.

    Weights have a scale for each output channel, maps one for the whole tensor, over the mean of the images' ranges in
    the batch (the file: over the calibration images). The gradient passes through the rounding as if it were not
    there, and is zero for values outside the range.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function not in _CHANNELS:
            return function(*args, **kwargs)
        x, weight, *rest = args
        return round_map(function(round_map(x), round_weight(weight, _CHANNELS[function]), *rest, **kwargs))


def round_weight(weight: Tensor, axis: int) -> Tensor:
    """A weight with 129 values for each of its output channels, evenly spread around 0."""
    others = [other for other in range(weight.ndim) if other != axis]
    scale = _scale(weight.detach().float().abs().amax(dim=others), _LARGEST_WEIGHT)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(
        weight.float(), scale, zero, axis, -_LARGEST_WEIGHT, _LARGEST_WEIGHT
    ).to(weight.dtype)


def round_map(x: Tensor) -> Tensor:
    """A map (B, ...) with 256 values, one of which is 0."""
    values = x.detach().float().flatten(start_dim=1)
    lowest = values.amin(dim=1).mean().clamp(max=0)
    highest = values.amax(dim=1).mean().clamp(min=0)
    scale = _scale(highest - lowest, _LARGEST_BYTE)
    zero = (-lowest / scale).round().to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, _LARGEST_BYTE).to(x.dtype)


def _scale(span: Tensor, steps: int) -> Tensor:
    """The distance of two neighbors; a tensor of zeros stays one."""
    return span.clamp(min=torch.finfo(torch.float32).tiny * steps) / steps
