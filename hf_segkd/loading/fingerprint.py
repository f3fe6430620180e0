"""Hash of everything that determines a model's predictions."""

from __future__ import annotations

import hashlib
import json

import torch
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

# Where a model lies and what it was saved with: it may be moved and saved again.
_LEFT_OUT = ("_name_or_path", "transformers_version", "architectures", "auto_map", "dtype", "torch_dtype")


def fingerprint(model: PreTrainedModel, processor: BaseImageProcessor) -> str:
    """SHA-256 of config, image processor and weights; every tensor is read once.

    Args:
        model (`PreTrainedModel`): As [`~hf_segkd.loading.any_model.load_model`] returns it.
        processor (`BaseImageProcessor`): Its image processor.

    Returns:
        `str`: 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for fields in (model.config.to_dict(), processor.to_dict()):
        kept = {key: value for key, value in fields.items() if key not in _LEFT_OUT}
        digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
