"""A vision backbone as a feature teacher: no classes and no head, only feature maps."""

from __future__ import annotations

import re
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from hf_segkd.loading.finite import check_finite
from hf_segkd.loading.pretrained import processor_of
from hf_segkd.models import SegmentationOutput

# What may be missing: poolers and tokens of masked training are not read, norms of a backbone's maps start as plain
# layer norms.
UNUSED = r"pooler|mask_token|^hidden_states_norms\."


class FeatureTeacher(PreTrainedModel):
    """A vision backbone that returns [`~hf_segkd.models.SegmentationOutput`] with features and hidden states alone.

    The rule for token sequences: the last `h·w` tokens are the patches, row by row, with `h` and `w` the image's sides
    divided by the patch size; class and register tokens, which come first, are dropped. An image whose sides are no
    multiples of the patch size is first resized to the nearest ones, so that the map covers all of it.

    Args:
        model (`PreTrainedModel`): Any `AutoBackbone`, or an `AutoModel` whose last hidden state is a map (B, C, h, w)
            or such a sequence (B, N, C).
        id2label (`dict[int, str]`): The student's classes, which its teacher must seem to have.

    Raises:
        ValueError: In `forward`, an output that is neither.
    """

    def __init__(self, model: PreTrainedModel, id2label: dict[int, str]):
        label2id = {name: index for index, name in id2label.items()}
        super().__init__(PreTrainedConfig(id2label=dict(id2label), label2id=label2id))
        self.model = model
        self.patch = _patch_size(model.config)
        # Position embeddings for images of another size than the backbone was trained on; others do so unasked.
        asked = "interpolate_pos_encoding" in signature(model.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if asked else {}

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = True) -> SegmentationOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): Normalized as the backbone's processor says.
            output_hidden_states (`bool`, *optional*): Whether to return the maps of all stages it was asked for.
        """
        size = [max(1, round(side / self.patch)) * self.patch for side in pixel_values.shape[-2:]]
        if size != [*pixel_values.shape[-2:]]:
            pixel_values = F.interpolate(pixel_values, size=size, mode="bilinear", antialias=True)
        output = self.model(pixel_values=pixel_values, **self.options)
        maps = output.feature_maps if "feature_maps" in output else (output.last_hidden_state,)
        maps = tuple(self._as_map(values, size) for values in maps)
        return SegmentationOutput(features=maps[-1], hidden_states=maps if output_hidden_states else None)

    def _as_map(self, values: Tensor, size: list[int]) -> Tensor:
        if values.ndim == 4:
            return values
        height, width = (side // self.patch for side in size)
        if values.ndim != 3 or self.patch == 1 or values.shape[1] < height * width:
            raise ValueError(
                f"{type(self.model).__name__} returns {tuple(values.shape)} for {size[0]}x{size[1]} pixels, which is "
                "neither a map (B, C, h, w) nor class tokens and then the patches (B, N, C). Take another backbone."
            )
        return values[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))


def load_feature_teacher(
    spec: str, id2label: dict[int, str], **hub_kwargs: Any
) -> tuple[FeatureTeacher, BaseImageProcessor]:
    """Load a vision backbone of a folder or Hub id: DINOv2, DINOv3, ConvNeXt, Swin, ViT, RADIO, ...

    Args:
        spec (`str`): Any model that `AutoBackbone`, or else `AutoModel`, loads. A head that it has is left out.
        id2label (`dict[int, str]`): Of the student.
        hub_kwargs: Passed to `from_pretrained`; `trust_remote_code` is `False` unless given.

    Raises:
        ValueError: Nothing to load there, weights that do not fill it, or a model that does not read images.
    """
    hub_kwargs = {"trust_remote_code": False} | hub_kwargs
    try:
        config = AutoConfig.from_pretrained(spec, **hub_kwargs)
        known = type(config) in MODEL_FOR_BACKBONE_MAPPING
        # Not through AutoBackbone, which asks the Hub about local folders too.
        reader = MODEL_FOR_BACKBONE_MAPPING[type(config)] if known else AutoModel
        model, report = reader.from_pretrained(spec, dtype=torch.float32, output_loading_info=True, **hub_kwargs)
    except OSError as error:
        raise ValueError(
            f"No backbone found at '{spec}' ({str(error).splitlines()[0]}). Give a folder or a Hub id, such as "
            "facebook/dinov2-base."
        ) from error
    missing = [key for key in report["missing_keys"] if not re.search(UNUSED, key)]
    if missing:
        raise ValueError(
            f"The weights in '{spec}' do not fill {type(model).__name__}: {', '.join(sorted(missing)[:8])}."
        )
    if model.main_input_name != "pixel_values":
        raise ValueError(f"'{spec}' is a {type(model).__name__}, which does not read images. Give a vision backbone.")
    check_finite(model, f"model at '{spec}'")
    return FeatureTeacher(model.eval(), id2label), processor_of(model, **hub_kwargs)


def _patch_size(config) -> int:
    """Patch size in pixels of a vision transformer of one scale, 1 for what returns maps."""
    patch = vars(config).get("patch_size", 1)
    sides = {patch} if isinstance(patch, int) else set(patch)
    # Swin and its kin have patches too, but return maps of several scales.
    if len(sides) > 1 or "num_hidden_layers" not in vars(config) or "depths" in vars(config):
        return 1
    return sides.pop()
