"""The networks that travel with released folders, registered with the Auto classes of transformers."""

from importlib import import_module
from inspect import signature
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
)
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING, AutoImageProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from .backbones import BACKBONES, resolve_backbone
from .bands import BYTE_RANGE, PIXEL_DTYPES, RGB, Bands
from .compat import PreTrainedConfig
from .image_processing import SegmentationImageProcessor
from .normalization import InputNormalization
from .outputs import SegmentationOutput, segmentation_loss, upsamples_with_align_corners
from .released_code import carry_code

__all__ = [
    "BACKBONES",
    "BYTE_RANGE",
    "MODELS",
    "NETWORKS",
    "PIXEL_DTYPES",
    "PROCESSORS",
    "PROCESSOR_FIELDS",
    "RGB",
    "SHORT_NAMES",
    "Bands",
    "InputNormalization",
    "SegmentationImageProcessor",
    "SegmentationOutput",
    "channel_config",
    "default_processor",
    "input_channels",
    "resolve_backbone",
    "segmentation_loss",
    "upsamples_with_align_corners",
]

# One line for each network: its file, which is its short name in recipes, and what its classes' names begin with.
NETWORKS = {
    "deeplabv3": "DeepLabV3",
    "espnet": "ESPNet",
    "espnetv2": "ESPNetv2",
    "pspnet": "PSPNet",
    "upernet": "UperNet",
}
MODELS: dict[type[PreTrainedConfig], type[PreTrainedModel]] = {}
# Short name -> model_type; the names of transformers' own networks are free for those.
SHORT_NAMES: dict[str, str] = {}

# Where the published weights want something else than RGB with ImageNet statistics.
_HALVES = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
_BGR = {"do_normalize": False, "do_flip_channel_order": True}
PROCESSORS: dict[str, dict[str, Any]] = {
    "beit": _HALVES,
    "data2vec-vision": _HALVES,
    "dpt": _HALVES,
    "mobilenet_v2": _HALVES,
    "mobilevit": _BGR,
    "mobilevitv2": _BGR,
}

# Before transformers 5.4, processors were a pair, slow and fast; ours passes for a slow one.
_PROCESSOR_CLASSES: Any = (SegmentationImageProcessor, None)
if "image_processor_classes" in signature(AutoImageProcessor.register).parameters:
    _PROCESSOR_CLASSES = dict.fromkeys(("pil", "torchvision"), SegmentationImageProcessor)

for _file, _name in NETWORKS.items():
    _module = import_module(f".{_file}", __name__)
    _config_class = getattr(_module, f"{_name}Config")
    _model_class = getattr(_module, f"{_name}ForSemanticSegmentation")
    MODELS[_config_class] = _model_class
    SHORT_NAMES[_file] = _config_class.model_type
    # What a network's published weights want of its images stands in its own file.
    PROCESSORS[_config_class.model_type] = vars(_module).get("PROCESSOR", {})
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)
    AutoModelForSemanticSegmentation.register(_config_class, _model_class, exist_ok=True)
    # Not through AutoImageProcessor.register: our UperNetConfig has the name of a native class, whose processor it
    # would load first, with a warning about torchvision.
    IMAGE_PROCESSOR_MAPPING.register(_config_class, _PROCESSOR_CLASSES, exist_ok=True)
    # What the pipeline looks at; without it, it says that it does not support the model.
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[_config_class.model_type] = _model_class.__name__
    # Saved folders carry the code of our models, so that they load where this package is not installed.
    _names = {"AutoConfig": _config_class.__name__, "AutoModelForSemanticSegmentation": _model_class.__name__}
    carry_code(_config_class, _names)
carry_code(SegmentationImageProcessor, {"AutoImageProcessor": SegmentationImageProcessor.__name__})


# What a recipe may say about a new model's images; `align_corners` is the model's own, sizes are the crop's.
PROCESSOR_FIELDS = (
    "do_flip_channel_order",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)


def default_processor(config: PreTrainedConfig, **fields: Any) -> SegmentationImageProcessor:
    """Processor for a model without a saved one, with `align_corners` of its config where it has that field.

    Args:
        config (`PreTrainedConfig`): ESPNet gets BGR 0..255 with the published CamVid and Cityscapes statistics, a
            native model what its own processor does by default, any other RGB with ImageNet's statistics.
        fields: Of `PROCESSOR_FIELDS`, what is to be otherwise: channel order, scale, mean, std.

    Raises:
        ValueError: Another field, or a value that the processor refuses.
    """
    if unknown := sorted(set(fields) - set(PROCESSOR_FIELDS)):
        raise ValueError(f"processor has no field {unknown[0]!r}. Its fields: {', '.join(PROCESSOR_FIELDS)}.")
    options = PROCESSORS.get(config.model_type, {}) | fields
    return SegmentationImageProcessor(**options, align_corners=upsamples_with_align_corners(config))


def input_channels(config: PreTrainedConfig) -> int:
    """Channels of the images that a model reads: its own `num_channels`, or its backbone's; 3 without either."""
    holder = channel_config(config)
    return 3 if holder is None else holder.num_channels


def channel_config(config: PreTrainedConfig) -> PreTrainedConfig | None:
    """The config that has the field `num_channels`: a model's own, or that of its backbone; `None` without either."""
    fields = config.to_dict()
    if "num_channels" in fields:
        return config
    return config.backbone_config if "num_channels" in (fields.get("backbone_config") or {}) else None
