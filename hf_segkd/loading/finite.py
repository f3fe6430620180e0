"""Weights that are NaN or infinite are refused when a model is loaded, not when its scores look odd."""

from __future__ import annotations

from transformers import PreTrainedModel


def check_finite(model: PreTrainedModel, who: str) -> None:
    """Refuse a model with a parameter or buffer that is NaN or infinite.

    Args:
        model (`PreTrainedModel`): Any model.
        who (`str`): What the message calls it: `"teacher"`, `"student"`, or a folder.

    Raises:
        ValueError: Names the first such tensor and how many there are.
    """
    tensors = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    bad = [key for key, value in tensors.items() if not value.isfinite().all()]
    if bad:
        wrong = int((~tensors[bad[0]].isfinite()).sum())
        raise ValueError(
            f"The {who} holds weights that are NaN or infinite: {len(bad)} of {len(tensors)} tensors, the first is "
            f"{bad[0]} ({wrong} of {tensors[bad[0]].numel()} values). Its training has diverged or its file is "
            "damaged: take an earlier checkpoint or load it anew."
        )
