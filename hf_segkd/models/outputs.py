"""What every segmentation model of the library returns."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils.generic import ModelOutput

from .compat import PreTrainedConfig


@dataclass
class SegmentationOutput(ModelOutput):
    """Output of a segmentation model, with the tensors that distillation compares.

    Args:
        loss (`torch.Tensor`, *optional*): Scalar cross-entropy, when labels were given.
        logits (`torch.Tensor` of shape `(B, K, h, w)`): Class scores before upsampling to the image.
        aux_logits (`torch.Tensor` of shape `(B, K, h', w')`, *optional*): Class scores of the auxiliary head.
        features (`torch.Tensor` of shape `(B, C, h, w)`, *optional*): The map that the published methods distill.
        hidden_states (`tuple[torch.Tensor, ...]`, *optional*): Encoder maps, shallow to deep, `(B, C_i, h_i, w_i)`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    aux_logits: Tensor | None = None
    features: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None

    def float(self) -> "SegmentationOutput":
        """Copy with half-precision tensors cast to float32; float64 stays, and so does the graph."""
        fields: dict[str, Any] = {name: _to_float(value) for name, value in self.items()}
        return SegmentationOutput(**fields)


def _to_float(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_to_float(item) for item in value)
    return value if value.dtype == torch.float64 else value.float()


def segmentation_loss(logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool) -> Tensor:
    """Mean cross-entropy over the pixels that count, at the size of the labels.

    Args:
        logits (`torch.Tensor` of shape `(B, K, h, w)`): Class scores, upsampled bilinearly to the labels.
        labels (`torch.Tensor` of shape `(B, H, W)`): Class ids, any integer type.
        ignore_index (`int`): Label of the pixels to skip.
        align_corners (`bool`): Whether the corner pixels of logits and labels coincide when upsampling.

    Returns:
        `torch.Tensor`: Scalar, a little over `log(K)` for an untrained ESPNet; zero with a graph if no pixel counts.
    """
    if logits.shape[-2:] != labels.shape[-2:]:
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=align_corners)
    total = F.cross_entropy(logits, labels.long(), ignore_index=ignore_index, reduction="sum")
    return total / (labels != ignore_index).sum().clamp(min=1)


def upsamples_with_align_corners(config: PreTrainedConfig) -> bool:
    """How a model's logits are brought to image size: its config's `align_corners`, else transformers' own `False`."""
    return config.to_dict().get("align_corners", False)
