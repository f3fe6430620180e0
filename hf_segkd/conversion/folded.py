"""MobileNetV2's ImageNet weights with batch norms folded into the convolutions, as quantized models are published."""

import torch
from torch import nn

from hf_segkd.conversion.family import StateDict

_EPS = nn.BatchNorm2d(1).eps
# Blocks of the file are counted from 1, and the first has no expansion: it is part of our stem.
_LAYERS = (("expand", "expand_1x1"), ("depthwise", "conv_3x3"), ("project", "reduce_1x1"))
_STEM = (
    ("stem", "first_conv"),
    (r"block1\.depthwise", "conv_3x3"),
    (r"block1\.project", "reduce_1x1"),
)
_ROWS = [(original, f"conv_stem.{layer}") for original, layer in _STEM]
_ROWS += [(rf"block{j}\.{original}", f"layer.{j - 2}.{layer}") for j in range(2, 18) for original, layer in _LAYERS]
MOBILENETV2_RENAME = tuple(
    (rf"^{original}\.{kind}$", f"backbone.{target}.{module}.{kind}")
    for original, target in _ROWS
    for kind, module in (("weight", "convolution"), ("bias", "normalization"))
)


def unfold_norms(weights: StateDict) -> StateDict:
    """Make each folded bias a batch norm that changes nothing else, exactly in evaluation.

    Training needs statistics: [`~hf_segkd.loading.norm_calibration.calibrate_folded_norms`] measures them.
    """
    norms = {}
    for key, bias in weights.items():
        if key.endswith(".normalization.bias"):
            name = key.removesuffix("bias")
            norms[f"{name}weight"] = torch.ones_like(bias)
            norms[f"{name}running_mean"] = torch.zeros_like(bias)
            norms[f"{name}running_var"] = torch.full_like(bias, 1 - _EPS)
    return weights | norms


def is_unfolded(norm: nn.BatchNorm2d) -> bool:
    """Whether a batch norm is as [`unfold_norms`] made it: a new one has another variance, a trained one a mean."""
    return bool((norm.running_var == torch.tensor(1 - norm.eps)).all() and (norm.running_mean == 0).all())
