"""What a model's config accepts as its backbone: a short name, or any backbone of transformers."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from transformers import CONFIG_MAPPING, MODEL_FOR_BACKBONE_MAPPING

from .compat import PreTrainedConfig

# One line for each file of backbones.
from .dilated_resnet import DilatedResNetBackbone
from .efficientnet_lite import EfficientNetLiteBackbone
from .mobilenetv2 import MobileNetV2Backbone
from .mobilenetv3 import MobileNetV3Backbone
from .mobilevit import MobileViTBackbone
from .presets import BACKBONES


def resolve_backbone(spec: str | dict[str, Any] | PreTrainedConfig) -> PreTrainedConfig:
    """Config of a backbone.

    Args:
        spec (`str`, `dict` or `PreTrainedConfig`): A key of `BACKBONES`; or `{"model_type": "swin", ...}` with fields
            of the config of any `AutoBackbone`; or such a config, taken as it is. Where the first two name neither
            `out_features` nor `out_indices`, the last four stages are returned, without the stem.

    Raises:
        ValueError: A name or model type that is no backbone.
    """
    if isinstance(spec, PreTrainedConfig):
        return spec
    if isinstance(spec, str):
        if spec not in BACKBONES:
            raise ValueError(
                f"Unknown backbone '{spec}'. Did you mean '{_closest(spec, BACKBONES)}'? "
                f"Known: {', '.join(BACKBONES)}; "
                "any other AutoBackbone goes by its config: {model_type: swin, ...}."
            )
        spec = BACKBONES[spec]
    options = dict(spec)
    config_class = _config_class(options.pop("model_type", None))
    config = config_class(**options)
    if options.get("out_features") is None and options.get("out_indices") is None:
        config.out_features = config.stage_names[1:][-4:]
    return config


def _config_class(model_type: str | None) -> type[PreTrainedConfig]:
    if model_type in CONFIG_MAPPING and CONFIG_MAPPING[model_type] in MODEL_FOR_BACKBONE_MAPPING:
        return CONFIG_MAPPING[model_type]
    known = sorted(config.model_type for config in MODEL_FOR_BACKBONE_MAPPING)
    raise ValueError(
        f"A backbone's model_type must be one that AutoBackbone knows, got '{model_type}'. Did you mean "
        f"'{_closest(model_type, known)}'? Known: {', '.join(known)}; or a short name: {', '.join(BACKBONES)}."
    )


def _closest(name: str | None, known: Iterable[str]) -> str:
    # This file travels with released models: it cannot import the library's own did_you_mean.
    return get_close_matches(str(name), list(known), n=1, cutoff=0.0)[0]
