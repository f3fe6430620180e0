"""Attention between the positions of a map, without keeping an N × N matrix."""

import torch
from torch import Tensor

from hf_segkd.losses.functional.tiling import recomputed

CPU_QUERIES, GPU_QUERIES = 256, 1024  # at once: their weights are what is held for a moment


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float = 1.0) -> Tensor:
    """`softmax(scale · q kᵀ) v`, some queries at a time, recomputed in backward unless the map is small.

    Not the fused kernels of `scaled_dot_product_attention`: they cannot be differentiated twice, as a gradient penalty
    does, and their backward turns similarities beyond 1e9 (features at the end of float16) into NaN.

    Args:
        query (`torch.Tensor` of shape `(B, c, n)`): What is looked for.
        key (`torch.Tensor` of shape `(B, c, N)`): Where.
        value (`torch.Tensor` of shape `(B, C, N)`): What is found there.
        scale (`float`, *optional*, defaults to `1.0`): Factor of the similarities.

    Returns:
        `torch.Tensor`: `(B, C, n)`.
    """
    if key.shape[2] <= value.shape[1]:  # The weights take no more memory than the values.
        return _attend(query * scale, key, value)
    parts = (query * scale).split(GPU_QUERIES if query.is_cuda else CPU_QUERIES, dim=2)
    return torch.cat([recomputed(_attend, part, key, value) for part in parts], dim=2)


def attend_by_sum(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`1/M Σ_j relu(query_i + key_j) value_j`, some queries at a time, recomputed in backward.

    Args:
        query (`torch.Tensor` of shape `(B, N)`), key (`torch.Tensor` of shape `(B, M)`): One number per position.
        value (`torch.Tensor` of shape `(B, C, M)`): What is found there.

    Returns:
        `torch.Tensor`: `(B, C, N)`.
    """
    value = value / key.shape[1]
    parts = query.split(GPU_QUERIES if query.is_cuda else CPU_QUERIES, dim=1)
    return torch.cat([recomputed(_attend_by_sum, part, key, value) for part in parts], dim=2)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return value @ (query.transpose(1, 2) @ key).softmax(dim=-1).transpose(1, 2)


def _attend_by_sum(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return value @ (key[:, :, None] + query[:, None]).relu()
