"""ResNet at output stride 8, or 4 without the stem's max-pool: the last two stages are dilated instead of strided."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, PreTrainedModel
from transformers.modeling_outputs import BackboneOutput
from transformers.utils import can_return_tuple

from .checkpointing import CheckpointedLayer
from .compat import BackboneConfigMixin, BackboneMixin, DataclassConfig, init
from .presets import BACKBONES

STAGE_STRIDES = (1, 2, 1, 1)
STAGE_DILATIONS = (1, 1, 2, 4)
LAYERS = {  # depths and kind of block
    "resnet18": ((2, 2, 2, 2), "basic"),
    "resnet34": ((3, 4, 6, 3), "basic"),
    "resnet50": ((3, 4, 6, 3), "bottleneck"),
    "resnet101": ((3, 4, 23, 3), "bottleneck"),
    "resnet152": ((3, 8, 36, 3), "bottleneck"),
}


def _preset(depths: tuple[int, ...], layer_type: str, stem: str) -> dict[str, Any]:
    hidden_sizes = (64, 128, 256, 512) if layer_type == "basic" else (256, 512, 1024, 2048)
    fields = {"depths": depths, "hidden_sizes": hidden_sizes, "layer_type": layer_type, "stem": stem}
    return {"model_type": "segkd_resnet"} | fields


RESNETS: dict[str, dict[str, Any]] = {
    f"{name}{suffix}": _preset(*layers, stem)
    for name, layers in LAYERS.items()
    for suffix, stem in (("", "deep"), ("_vanilla", "plain"))
}


class DilatedResNetConfig(BackboneConfigMixin, DataclassConfig):
    """Configuration of [`DilatedResNetBackbone`]. The defaults are CIRKD's ResNet-18.

    Args:
        stem (`str`, *optional*, defaults to `"deep"`): `"deep"` is three 3×3 convolutions, the last twice as wide;
            `"plain"` is one 7×7 convolution.
        stem_width (`int`, *optional*, defaults to `64`): Channels of the stem's first convolution.
        depths (`tuple[int, ...]`, *optional*, defaults to `(2, 2, 2, 2)`): Blocks of each of the four stages.
        hidden_sizes (`tuple[int, ...]`, *optional*, defaults to `(64, 128, 256, 512)`): Output channels of each stage.
        layer_type (`str`, *optional*, defaults to `"basic"`): `"basic"` or `"bottleneck"`, whose width is a quarter
            of its output.
        first_dilation (`str`, *optional*, defaults to `"half"`): Dilation of the first 3×3 convolution of a dilated
            stage: `"half"` the stage's (CIRKD, CSKD) or the `"full"` one (Structured KD, CWD).
        ceil_mode (`bool`, *optional*, defaults to `False`): Whether the max-pool rounds sizes up (Structured KD, CWD):
            even sizes then give maps one pixel larger.
        stem_pool (`bool`, *optional*, defaults to `True`): Whether a max-pool of stride 2 ends the stem. Without it
            the maps are twice as large, at strides 2, 2, 4, 4 and 4: for small images.
        num_channels (`int`, *optional*, defaults to `3`): Channels of the images.
        out_features (`list[str]`, *optional*): Stages to return, of `"stem"`, `"stage1"` to `"stage4"`, in order.
        out_indices (`list[int]`, *optional*): The same by number, 0 to 4; the last stage if neither is given.

    Raises:
        ValueError: A value that is none of those named, or not four depths and widths.
    """

    model_type = "segkd_resnet"

    stem: str = "deep"
    stem_width: int = 64
    depths: tuple[int, ...] | list[int] = (2, 2, 2, 2)
    hidden_sizes: tuple[int, ...] | list[int] = (64, 128, 256, 512)
    layer_type: str = "basic"
    first_dilation: str = "half"
    ceil_mode: bool = False
    stem_pool: bool = True
    num_channels: int = 3

    def __post_init__(self, **kwargs):
        self.depths, self.hidden_sizes = tuple(self.depths), tuple(self.hidden_sizes)
        if len(self.depths) != 4 or min(self.depths) < 1:
            raise ValueError(f"depths must be four numbers of blocks, at least 1 each, got {self.depths}.")
        if len(self.hidden_sizes) != 4 or min(self.hidden_sizes) < 4:
            raise ValueError(f"hidden_sizes must be four widths, at least 4 each, got {self.hidden_sizes}.")
        choices = {
            "stem": ("deep", "plain"),
            "layer_type": ("basic", "bottleneck"),
            "first_dilation": ("half", "full"),
        }
        for field, values in choices.items():
            if getattr(self, field) not in values:
                raise ValueError(f"{field} must be one of {', '.join(values)}, got {getattr(self, field)!r}.")
        self.stage_names = ["stem", "stage1", "stage2", "stage3", "stage4"]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)


class DilatedResNetConvNorm(nn.Module):
    """Convolution without bias that keeps the size at stride 1, and batch norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        padding = dilation * (kernel_size // 2)
        self.convolution = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation=dilation, bias=False
        )
        self.normalization = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalization(self.convolution(x))


class DilatedResNetEmbedder(nn.Module):
    """The stem: stride 2 in its first convolution, stride 2 in the pool if there is one."""

    def __init__(self, config: DilatedResNetConfig):
        super().__init__()
        width = config.stem_width
        if config.stem == "deep":
            layers = [(config.num_channels, width, 3, 2), (width, width, 3, 1), (width, 2 * width, 3, 1)]
        else:
            layers = [(config.num_channels, width, 7, 2)]
        self.layers = nn.ModuleList(DilatedResNetConvNorm(*layer) for layer in layers)
        self.pool = nn.Identity()
        if config.stem_pool:
            self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1, ceil_mode=config.ceil_mode)
        self.out_channels = layers[-1][1]

    def forward(self, pixel_values: Tensor) -> Tensor:
        for layer in self.layers:
            pixel_values = F.relu(layer(pixel_values))
        return self.pool(pixel_values)


class DilatedResNetLayer(CheckpointedLayer):
    """Residual block; a bottleneck has its stride on the 3×3 convolution.

    Args:
        dilations (`tuple[int, int]`): Of the first 3×3 convolution, and of the second that only a basic block has.
    """

    def __init__(self, in_channels: int, out_channels: int, layer_type: str, stride: int, dilations: tuple[int, int]):
        super().__init__()
        first, second = dilations
        if layer_type == "basic":
            layers = [(in_channels, out_channels, 3, stride, first), (out_channels, out_channels, 3, 1, second)]
        else:
            width = out_channels // 4
            layers = [(in_channels, width, 1), (width, width, 3, stride, first), (width, out_channels, 1)]
        self.layer = nn.ModuleList(DilatedResNetConvNorm(*layer) for layer in layers)
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = DilatedResNetConvNorm(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        for layer in self.layer[:-1]:
            residual = F.relu(layer(residual))
        return F.relu(self.layer[-1](residual) + self.shortcut(x))


class DilatedResNetStage(nn.Module):
    def __init__(self, config: DilatedResNetConfig, index: int, in_channels: int):
        super().__init__()
        out_channels, dilation = config.hidden_sizes[index], STAGE_DILATIONS[index]
        first = max(dilation // 2, 1) if config.first_dilation == "half" else dilation
        options = [(in_channels, STAGE_STRIDES[index], first)]
        options += [(out_channels, 1, dilation)] * (config.depths[index] - 1)
        self.layers = nn.ModuleList(
            DilatedResNetLayer(channels, out_channels, config.layer_type, stride, (block_dilation, dilation))
            for channels, stride, block_dilation in options
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class DilatedResNetEncoder(nn.Module):
    def __init__(self, config: DilatedResNetConfig, in_channels: int):
        super().__init__()
        widths = (in_channels, *config.hidden_sizes[:-1])
        self.stages = nn.ModuleList(DilatedResNetStage(config, index, width) for index, width in enumerate(widths))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        hidden_states = (x,)
        for stage in self.stages:
            hidden_states += (stage(hidden_states[-1]),)
        return hidden_states


class DilatedResNetBackbone(BackboneMixin, PreTrainedModel):
    """ResNet whose stages end at strides 4, 8, 8 and 8; the stem's pooled map is at stride 4.

    With `stem_pool=False` all strides are half of these.

    Convolutions start from Kaiming's normal distribution (fan-out). Gradient checkpointing runs block by block.

    Args:
        config (`DilatedResNetConfig`): The network.

    Differs from the original: Structured KD and CWD start from torch's default where they load no ImageNet weights,
    and their batch norm is InPlaceABN.

    Reference: He et al., Deep Residual Learning for Image Recognition, CVPR 2016,
    https://huggingface.co/papers/1512.03385; dilation: Yu et al., Dilated Residual Networks, CVPR 2017,
    https://huggingface.co/papers/1705.09914
    """

    config: DilatedResNetConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    has_attentions = False
    _no_split_modules = ["DilatedResNetLayer"]

    def __init__(self, config: DilatedResNetConfig):
        super().__init__(config)
        self.embedder = DilatedResNetEmbedder(config)
        self.encoder = DilatedResNetEncoder(config, self.embedder.out_channels)
        self.num_features = [self.embedder.out_channels, *config.hidden_sizes]
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(self, pixel_values: Tensor, output_hidden_states: bool | None = None) -> BackboneOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): Normalized images of any size.
            output_hidden_states (`bool`, *optional*): Whether to return the maps of the stem and all stages.
            return_dict (`bool`, *optional*): `False` returns a tuple of the fields that are not `None`.

        Returns:
            `BackboneOutput`: `feature_maps`, one `(B, C, h, w)` for each of `config.out_features`.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = self.encoder(self.embedder(pixel_values))
        return BackboneOutput(
            feature_maps=tuple(hidden_states[index] for index in self.out_indices),
            hidden_states=hidden_states if output_hidden_states else None,
        )


# Here and not in the package, so that released folders bring it along with their code.
AutoConfig.register(DilatedResNetConfig.model_type, DilatedResNetConfig, exist_ok=True)
AutoBackbone.register(DilatedResNetConfig, DilatedResNetBackbone, exist_ok=True)
BACKBONES.update(RESNETS)
