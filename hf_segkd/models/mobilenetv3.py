"""MobileNetV3-Small and -Large as dense backbones: output stride 8."""

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig

from .checkpointing import CheckpointedLayer
from .mobile_backbone import ConvNormAct, MobileBackbone, MobileBackboneConfig
from .presets import BACKBONES

STEM_CHANNELS = 16
OUTPUT_STRIDE = 8
# Kernel, expanded channels, channels, squeeze-and-excitation, h-swish (else ReLU), ImageNet stride of each block.
BLOCKS = {
    "small": (
        (3, 16, 16, True, False, 2),
        (3, 72, 24, False, False, 2),
        (3, 88, 24, False, False, 1),
        (5, 96, 40, True, True, 2),
        (5, 240, 40, True, True, 1),
        (5, 240, 40, True, True, 1),
        (5, 120, 48, True, True, 1),
        (5, 144, 48, True, True, 1),
        (5, 288, 96, True, True, 2),
        (5, 576, 96, True, True, 1),
        (5, 576, 96, True, True, 1),
    ),
    "large": (
        (3, 16, 16, False, False, 1),
        (3, 64, 24, False, False, 2),
        (3, 72, 24, False, False, 1),
        (5, 72, 40, True, False, 2),
        (5, 120, 40, True, False, 1),
        (5, 120, 40, True, False, 1),
        (3, 240, 80, False, True, 2),
        (3, 200, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 480, 112, True, True, 1),
        (3, 672, 112, True, True, 1),
        (5, 672, 160, True, True, 2),
        (5, 960, 160, True, True, 1),
        (5, 960, 160, True, True, 1),
    ),
}
PRESETS = {f"mobilenetv3_{variant}": {"model_type": "segkd_mobilenetv3", "variant": variant} for variant in BLOCKS}


class MobileNetV3Config(MobileBackboneConfig):
    """Configuration of [`MobileNetV3Backbone`].

    Args:
        variant (`str`, *optional*, defaults to `"large"`): `"small"` or `"large"`.
        num_channels (`int`, *optional*, defaults to `3`): Channels of the images.
        out_features (`list[str]`, *optional*): Stages to return, of `"stem"`, `"stage1"` to `"stage5"` (small) or
            `"stage6"` (large), in order.
        out_indices (`list[int]`, *optional*): The same by number; the last stage if neither is given.

    Raises:
        ValueError: Another variant, or a stage that does not exist.
    """

    model_type = "segkd_mobilenetv3"

    variant: str = "large"
    num_channels: int = 3

    @property
    def stage_ends(self) -> list[int]:
        """Numbers of blocks at whose end a stage ends: before each block that has a stride on ImageNet, and last."""
        blocks = BLOCKS[self.variant]
        return [index for index, row in enumerate(blocks) if row[-1] == 2 and index > 0] + [len(blocks)]

    @property
    def stage_channels(self) -> list[int]:
        blocks = BLOCKS[self.variant]
        last_expanded = blocks[-1][1]
        return [STEM_CHANNELS] + [blocks[end - 1][2] for end in self.stage_ends] + [last_expanded]

    def __post_init__(self, **kwargs):
        if self.variant not in BLOCKS:
            raise ValueError(f"variant must be one of {', '.join(BLOCKS)}, got '{self.variant}'.")
        super().__post_init__(**kwargs)


class MobileNetV3SamePaddingLayer(ConvNormAct):
    """Pads as TensorFlow's SAME does: more after than before where the two cannot be equal."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, padding=0, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        convolution = self.convolution
        (kernel_size, _), (dilation, _), (stride, _) = (
            convolution.kernel_size,
            convolution.dilation,
            convolution.stride,
        )
        padding = []
        for size in reversed(x.shape[-2:]):
            outputs = -(-size // stride)
            total = max((outputs - 1) * stride + (kernel_size - 1) * dilation + 1 - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(x, padding))


class MobileNetV3SqueezeExcite(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        # A quarter of the channels, rounded to a multiple of 8, but never below 90 % of the quarter.
        quarter = channels // 4
        squeezed = max(8, (quarter + 4) // 8 * 8)
        squeezed += 8 if squeezed < 0.9 * quarter else 0
        self.reduce = nn.Conv2d(channels, squeezed, kernel_size=1)
        self.expand = nn.Conv2d(squeezed, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.expand(F.relu(self.reduce(x.mean(dim=(2, 3), keepdim=True))))
        return x * F.hardsigmoid(scale)


class MobileNetV3Block(CheckpointedLayer):
    def __init__(self, in_channels: int, row: tuple, stride: int, dilation: int):
        super().__init__()
        kernel_size, width, out_channels, squeeze, hard_swish, imagenet_stride = row
        activation = nn.Hardswish if hard_swish else nn.ReLU
        depthwise = MobileNetV3SamePaddingLayer if imagenet_stride == 2 else ConvNormAct
        self.residual = imagenet_stride == 1 and in_channels == out_channels
        self.expand_1x1 = nn.Identity()
        if width != in_channels:
            self.expand_1x1 = ConvNormAct(in_channels, width, 1, activation=activation)
        self.conv_dw = depthwise(width, width, kernel_size, stride, dilation, groups=width, activation=activation)
        self.squeeze_excite = MobileNetV3SqueezeExcite(width) if squeeze else nn.Identity()
        self.reduce_1x1 = ConvNormAct(width, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.reduce_1x1(self.squeeze_excite(self.conv_dw(self.expand_1x1(x))))
        return x + out if self.residual else out


class MobileNetV3Backbone(MobileBackbone):
    """MobileNetV3 with the strides beyond 8 replaced by dilation, of the strided block itself too.

    The last stage is the 1×1 convolution after the blocks. Small: 16, 16, 24, 48, 96 and 576 channels at strides 2, 4
    and then 8; large: 16, 16, 24, 40, 112, 160 and 960 channels at strides 2, 2, 4 and then 8.

    Args:
        config (`MobileNetV3Config`): The network.

    Reference: Howard et al., Searching for MobileNetV3, ICCV 2019, https://huggingface.co/papers/1905.02244
    """

    config: MobileNetV3Config
    _no_split_modules = ["MobileNetV3Block"]

    def __init__(self, config: MobileNetV3Config):
        super().__init__(config)
        self.conv_stem = MobileNetV3SamePaddingLayer(
            config.num_channels, STEM_CHANNELS, 3, stride=2, activation=nn.Hardswish
        )
        self.layer = nn.ModuleList()
        in_channels, reached, dilation = STEM_CHANNELS, 2, 1
        for row in BLOCKS[config.variant]:
            stride = row[-1] if reached < OUTPUT_STRIDE else 1
            dilation *= row[-1] // stride
            reached *= stride
            self.layer.append(MobileNetV3Block(in_channels, row, stride, dilation))
            in_channels = row[2]
        self.conv_head = ConvNormAct(in_channels, config.stage_channels[-1], 1, activation=nn.Hardswish)
        self.post_init()

    def stages(self, pixel_values: Tensor) -> list[Tensor]:
        x = self.conv_stem(pixel_values)
        hidden_states = [x]
        ends = self.config.stage_ends
        for index, block in enumerate(self.layer, start=1):
            x = block(x)
            if index in ends:
                hidden_states.append(x)
        return [*hidden_states, self.conv_head(x)]


# Here and not in the package, so that released folders bring it along with their code.
AutoConfig.register(MobileNetV3Config.model_type, MobileNetV3Config, exist_ok=True)
AutoBackbone.register(MobileNetV3Config, MobileNetV3Backbone, exist_ok=True)
BACKBONES.update(PRESETS)
