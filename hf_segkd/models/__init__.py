"""The networks that travel with released folders, registered with the Auto classes of transformers."""

from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)

from .backbones import BACKBONES, resolve_backbone
from .deeplabv3 import DeepLabV3Config, DeepLabV3ForSemanticSegmentation
from .dilated_resnet import DilatedResNetBackbone, DilatedResNetConfig
from .efficientnet_lite import EfficientNetLiteBackbone, EfficientNetLiteConfig
from .espnet import ESPNetConfig, ESPNetForSemanticSegmentation
from .espnetv2 import ESPNetv2Config, ESPNetv2ForSemanticSegmentation
from .image_processing import SegmentationImageProcessor
from .mobilenetv2 import MobileNetV2Backbone, MobileNetV2Config
from .mobilenetv3 import MobileNetV3Backbone, MobileNetV3Config
from .mobilevit import MobileViTBackbone, MobileViTConfig
from .normalization import InputNormalization
from .outputs import SegmentationOutput, segmentation_loss, upsamples_with_align_corners
from .pspnet import PSPNetConfig, PSPNetForSemanticSegmentation
from .upernet import UperNetConfig, UperNetForSemanticSegmentation

__all__ = [
    "BACKBONES",
    "MODELS",
    "PROCESSORS",
    "PROCESSOR_FIELDS",
    "DeepLabV3Config",
    "DeepLabV3ForSemanticSegmentation",
    "DilatedResNetBackbone",
    "DilatedResNetConfig",
    "ESPNetConfig",
    "ESPNetForSemanticSegmentation",
    "ESPNetv2Config",
    "ESPNetv2ForSemanticSegmentation",
    "EfficientNetLiteBackbone",
    "EfficientNetLiteConfig",
    "InputNormalization",
    "MobileNetV2Backbone",
    "MobileNetV2Config",
    "MobileNetV3Backbone",
    "MobileNetV3Config",
    "MobileViTBackbone",
    "MobileViTConfig",
    "PSPNetConfig",
    "PSPNetForSemanticSegmentation",
    "SegmentationImageProcessor",
    "SegmentationOutput",
    "UperNetConfig",
    "UperNetForSemanticSegmentation",
    "default_processor",
    "resolve_backbone",
    "segmentation_loss",
    "upsamples_with_align_corners",
]

MODELS: dict[type[PreTrainedConfig], type[PreTrainedModel]] = {
    ESPNetConfig: ESPNetForSemanticSegmentation,
    ESPNetv2Config: ESPNetv2ForSemanticSegmentation,
    DeepLabV3Config: DeepLabV3ForSemanticSegmentation,
    PSPNetConfig: PSPNetForSemanticSegmentation,
    UperNetConfig: UperNetForSemanticSegmentation,
}

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
    "segkd_espnet": {
        "do_rescale": False,
        "do_flip_channel_order": True,
        "image_mean": (73.18188461, 82.93553322, 72.41519599),
        "image_std": (45.3199, 46.1528, 44.9148),
    },
}

for _config_class, _model_class in MODELS.items():
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)
    AutoModelForSemanticSegmentation.register(_config_class, _model_class, exist_ok=True)
    AutoImageProcessor.register(
        _config_class,
        image_processor_classes={"pil": SegmentationImageProcessor, "torchvision": SegmentationImageProcessor},
        exist_ok=True,
    )
    # Saved folders carry the code of our models, so that they load where this package is not installed.
    _config_class.register_for_auto_class()
    _model_class.register_for_auto_class("AutoModelForSemanticSegmentation")
SegmentationImageProcessor.register_for_auto_class()


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
