"""EfficientNet-Lite 0, 1 and 2 as dense backbones: no squeeze-and-excitation, ReLU6, made for 8-bit integers."""

import math

from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig

from .checkpointing import CheckpointedLayer
from .mobile_backbone import ConvNormAct, MobileBackbone, MobileBackboneConfig
from .presets import BACKBONES

STEM_CHANNELS = 32
NORM_EPS = 1e-3
OUTPUT_STRIDES = (8, 16, 32)
# Kernel, expansion, channels, blocks and ImageNet stride of each stage, before the variant multiplies them.
STAGES = (
    (3, 1, 16, 1, 1),
    (3, 6, 24, 2, 2),
    (5, 6, 40, 2, 2),
    (3, 6, 80, 3, 2),
    (5, 6, 112, 3, 1),
    (5, 6, 192, 4, 2),
    (3, 6, 320, 1, 1),
)
# Factors of channels and of blocks.
VARIANTS = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}
PRESETS = {
    f"efficientnet_{variant}": {"model_type": "segkd_efficientnet_lite", "variant": variant} for variant in VARIANTS
}


class EfficientNetLiteConfig(MobileBackboneConfig):
    """Configuration of [`EfficientNetLiteBackbone`].

    Args:
        variant (`str`, *optional*, defaults to `"lite0"`): `"lite0"`, `"lite1"` or `"lite2"`.
        output_stride (`int`, *optional*, defaults to `8`): Stride of the last maps: 8, 16, or 32 as on ImageNet.
        num_channels (`int`, *optional*, defaults to `3`): Channels of the images.
        out_features (`list[str]`, *optional*): Stages to return, of `"stem"`, `"stage1"` to `"stage7"`, in order.
        out_indices (`list[int]`, *optional*): The same by number; the last stage if neither is given.

    Raises:
        ValueError: Another variant or stride, or a stage that does not exist.
    """

    model_type = "segkd_efficientnet_lite"

    variant: str = "lite0"
    output_stride: int = 8
    num_channels: int = 3

    @property
    def stage_depths(self) -> list[int]:
        """Blocks of each stage; the first and the last have one whatever the variant."""
        factor = VARIANTS[self.variant][1]
        return [1, *(math.ceil(blocks * factor) for _, _, _, blocks, _ in STAGES[1:-1]), 1]

    @property
    def stage_channels(self) -> list[int]:
        factor = VARIANTS[self.variant][0]
        return [STEM_CHANNELS] + [_multiple_of_8(channels * factor) for _, _, channels, _, _ in STAGES]

    def __post_init__(self, **kwargs):
        if self.variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got '{self.variant}'.")
        if self.output_stride not in OUTPUT_STRIDES:
            raise ValueError(f"output_stride must be one of {OUTPUT_STRIDES}, got {self.output_stride}.")
        super().__post_init__(**kwargs)


def _multiple_of_8(channels: float) -> int:
    """The nearest multiple of 8 that is not below 90 % of the channels."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class EfficientNetLiteBlock(CheckpointedLayer):
    """Expand, filter each channel by itself, project without activation; a shortcut where the shape stays."""

    def __init__(
        self, in_channels: int, out_channels: int, expand_ratio: int, kernel_size: int, stride: int, dilation: int
    ):
        super().__init__()
        width = in_channels * expand_ratio
        self.residual = stride == 1 and in_channels == out_channels
        self.expand_1x1 = nn.Identity()
        if expand_ratio > 1:
            self.expand_1x1 = ConvNormAct(in_channels, width, 1, activation=nn.ReLU6)
        self.conv_dw = ConvNormAct(width, width, kernel_size, stride, dilation, groups=width, activation=nn.ReLU6)
        self.reduce_1x1 = ConvNormAct(width, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.reduce_1x1(self.conv_dw(self.expand_1x1(x)))
        return x + out if self.residual else out


class EfficientNetLiteBackbone(MobileBackbone):
    """EfficientNet-Lite with the strides beyond `config.output_stride` replaced by dilation.

    A block that loses its stride keeps the dilation of the block before, so that every second value of its map, or
    every fourth, is the one that ImageNet training taught. The stem and the stages end at strides 2, 2, 4, 8, 16, 16,
    32 and 32, but at most at the output stride; the 1280-channel convolution is left out.

    Args:
        config (`EfficientNetLiteConfig`): The network.

    Differs from the original: symmetric padding, which moves the grid of a strided convolution by a pixel at even
    sizes and changes nothing at 32 k + 1; no dropped blocks in training.

    Reference: Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019,
    https://huggingface.co/papers/1905.11946; Lite: Liu, Higher accuracy on vision models with EfficientNet-Lite,
    https://blog.tensorflow.org/2020/03/higher-accuracy-on-vision-models-with-efficientnet-lite.html
    """

    config: EfficientNetLiteConfig
    _no_split_modules = ["EfficientNetLiteBlock"]

    def __init__(self, config: EfficientNetLiteConfig):
        super().__init__(config)
        self.conv_stem = ConvNormAct(config.num_channels, STEM_CHANNELS, 3, stride=2, activation=nn.ReLU6)
        self.layer = nn.ModuleList()
        self.stage_ends = []
        in_channels, reached, dilation = STEM_CHANNELS, 2, 1
        for stage, depth, channels in zip(STAGES, config.stage_depths, config.stage_channels[1:], strict=True):
            kernel_size, expand_ratio, _, _, imagenet_stride = stage
            stride = imagenet_stride if reached < config.output_stride else 1
            for index in range(depth):
                block_stride = stride if index == 0 else 1
                block = EfficientNetLiteBlock(in_channels, channels, expand_ratio, kernel_size, block_stride, dilation)
                self.layer.append(block)
                in_channels = channels
                if index == 0:
                    dilation *= imagenet_stride // stride
            reached *= stride
            self.stage_ends.append(len(self.layer))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = NORM_EPS
        self.post_init()


# Here and not in the package, so that released folders bring it along with their code.
AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
AutoBackbone.register(EfficientNetLiteConfig, EfficientNetLiteBackbone, exist_ok=True)
BACKBONES.update(PRESETS)
