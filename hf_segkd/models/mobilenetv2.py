"""MobileNetV2 as a dense backbone: output stride 8, no 1280-channel convolution."""

from itertools import accumulate

from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig

from .mobile_backbone import ConvNormAct, InvertedResidual, MobileBackbone, MobileBackboneConfig
from .presets import BACKBONES

STEM_CHANNELS = (32, 16)
# Channels, blocks, stride and dilation of each stage; the last four had strides 2, 1, 2, 1 on ImageNet.
STAGES = ((24, 2, 2, 1), (32, 3, 2, 1), (64, 4, 1, 2), (96, 3, 1, 2), (160, 3, 1, 4), (320, 1, 1, 4))
PRESETS = {
    "mobilenetv2": {"model_type": "segkd_mobilenetv2"},
    "mobilenetv2_ssseg": {"model_type": "segkd_mobilenetv2", "dilate_first_block_only": True},
}


class MobileNetV2Config(MobileBackboneConfig):
    """Configuration of [`MobileNetV2Backbone`]. The defaults are the network of CIRKD's first version and of CSKD.

    Args:
        dilate_first_block_only (`bool`, *optional*, defaults to `False`): `False` lets the first block of a stage keep
            the dilation of the stage before, and the others use the stage's own (1, 1, 2, 2, 4, 4). `True` gives it to
            the first block alone, the others have none: the layout of CIRKD's second version (ssseg).
        num_channels (`int`, *optional*, defaults to `3`): Channels of the images.
        out_features (`list[str]`, *optional*): Stages to return, of `"stem"`, `"stage1"` to `"stage6"`, in order.
        out_indices (`list[int]`, *optional*): The same by number; the last stage if neither is given.

    Raises:
        ValueError: A stage that does not exist.
    """

    model_type = "segkd_mobilenetv2"

    dilate_first_block_only: bool = False
    num_channels: int = 3

    @property
    def stage_channels(self) -> list[int]:
        return [STEM_CHANNELS[-1]] + [channels for channels, *_ in STAGES]


class MobileNetV2Stem(nn.Module):
    def __init__(self, num_channels: int):
        super().__init__()
        width, out_channels = STEM_CHANNELS
        self.first_conv = ConvNormAct(num_channels, width, 3, stride=2, activation=nn.ReLU6)
        self.conv_3x3 = ConvNormAct(width, width, 3, groups=width, activation=nn.ReLU6)
        self.reduce_1x1 = ConvNormAct(width, out_channels, 1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.reduce_1x1(self.conv_3x3(self.first_conv(pixel_values)))


class MobileNetV2Backbone(MobileBackbone):
    """MobileNetV2 with the last two strides replaced by dilation.

    Stages end at strides 2, 4 and then 8, with 16, 24, 32, 64, 96, 160 and 320 channels.

    Args:
        config (`MobileNetV2Config`): The network.

    Reference: Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018,
    https://huggingface.co/papers/1801.04381
    """

    config: MobileNetV2Config
    _no_split_modules = ["InvertedResidual"]

    def __init__(self, config: MobileNetV2Config):
        super().__init__(config)
        self.conv_stem = MobileNetV2Stem(config.num_channels)
        self.layer = nn.ModuleList()
        in_channels, previous = STEM_CHANNELS[-1], 1
        for channels, depth, stride, dilation in STAGES:
            dilations = [previous] + [dilation] * (depth - 1)
            if config.dilate_first_block_only:
                dilations = [dilation] + [1] * (depth - 1)
            for index in range(depth):
                options = {"stride": stride if index == 0 else 1, "dilation": dilations[index]}
                block = InvertedResidual(in_channels, channels, expand_ratio=6, activation=nn.ReLU6, **options)
                self.layer.append(block)
                in_channels = channels
            previous = dilation
        self.stage_ends = set(accumulate(depth for _, depth, *_ in STAGES))
        self.post_init()


# Here and not in the package, so that released folders bring it along with their code.
AutoConfig.register(MobileNetV2Config.model_type, MobileNetV2Config, exist_ok=True)
AutoBackbone.register(MobileNetV2Config, MobileNetV2Backbone, exist_ok=True)
BACKBONES.update(PRESETS)
