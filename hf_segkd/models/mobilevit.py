"""MobileViT-XXS, -XS and -S as dense backbones: output stride 8."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig

from .checkpointing import CheckpointedLayer
from .mobile_backbone import ConvNormAct, InvertedResidual, MobileBackbone, MobileBackboneConfig
from .presets import BACKBONES

STEM_CHANNELS = 16
PATCH_SIZE = 2
# Inverted residuals of the first two stages; then stride and dilation of the one that starts each of the others.
INVERTED_RESIDUALS = (1, 3)
STRIDES = (2, 1, 1)
DILATIONS = (1, 2, 4)
PRESETS = {
    "mobilevit_xxs": {
        "model_type": "segkd_mobilevit",
        "hidden_sizes": [16, 24, 48, 64, 80],
        "transformer_sizes": [64, 80, 96],
        "expand_ratio": 2,
    },
    "mobilevit_xs": {
        "model_type": "segkd_mobilevit",
        "hidden_sizes": [32, 48, 64, 80, 96],
        "transformer_sizes": [96, 120, 144],
    },
    "mobilevit_s": {"model_type": "segkd_mobilevit"},
}


class MobileViTConfig(MobileBackboneConfig):
    """Configuration of [`MobileViTBackbone`]. The defaults are MobileViT-S.

    Args:
        hidden_sizes (`tuple[int, ...]`, *optional*, defaults to `(32, 64, 96, 128, 160)`): Channels of the stages
            between stem and tail; the tail has four times the last.
        transformer_sizes (`tuple[int, ...]`, *optional*, defaults to `(144, 192, 240)`): Widths of the transformers in
            the last three of them, multiples of `num_attention_heads`.
        depths (`tuple[int, ...]`, *optional*, defaults to `(2, 4, 3)`): Layers of each transformer, at least 1.
        num_attention_heads (`int`, *optional*, defaults to `4`): Heads of each attention.
        expand_ratio (`int`, *optional*, defaults to `4`): Expansion inside an inverted residual, at least 1.
        num_channels (`int`, *optional*, defaults to `3`): Channels of the images.
        out_features (`list[str]`, *optional*): Stages to return, of `"stem"`, `"stage1"` to `"stage6"`, in order.
        out_indices (`list[int]`, *optional*): The same by number; the last stage if neither is given.

    Raises:
        ValueError: A wrong number of widths or depths, one that does not fit, or a stage that does not exist.
    """

    model_type = "segkd_mobilevit"

    hidden_sizes: tuple[int, ...] | list[int] = (32, 64, 96, 128, 160)
    transformer_sizes: tuple[int, ...] | list[int] = (144, 192, 240)
    depths: tuple[int, ...] | list[int] = (2, 4, 3)
    num_attention_heads: int = 4
    expand_ratio: int = 4
    num_channels: int = 3

    @property
    def stage_channels(self) -> list[int]:
        return [STEM_CHANNELS, *self.hidden_sizes, 4 * self.hidden_sizes[-1]]

    def __post_init__(self, **kwargs):
        # JSON knows lists only: a config read back must equal the one saved.
        self.hidden_sizes = tuple(self.hidden_sizes)
        self.transformer_sizes = tuple(self.transformer_sizes)
        self.depths = tuple(self.depths)
        if len(self.hidden_sizes) != 5 or min(self.hidden_sizes) < 1:
            raise ValueError(f"hidden_sizes must be five widths, at least 1 each, got {self.hidden_sizes}.")
        heads = self.num_attention_heads
        if len(self.transformer_sizes) != 3 or any(size < 1 or size % heads for size in self.transformer_sizes):
            raise ValueError(
                f"transformer_sizes must be three multiples of num_attention_heads ({heads}), "
                f"got {self.transformer_sizes}."
            )
        if len(self.depths) != 3 or min(self.depths) < 1:
            raise ValueError(f"depths must be three numbers of layers, at least 1 each, got {self.depths}.")
        super().__post_init__(**kwargs)


def _named(name: str, module: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict([(name, module)]))


class MobileViTSelfAttention(nn.Module):
    def __init__(self, size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class MobileViTAttention(nn.Module):
    def __init__(self, size: int, num_heads: int):
        super().__init__()
        self.attention = MobileViTSelfAttention(size, num_heads)
        self.output = _named("dense", nn.Linear(size, size))

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.attention(x))


class MobileViTTransformerLayer(CheckpointedLayer):
    def __init__(self, size: int, num_heads: int):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(size, eps=1e-5)
        self.attention = MobileViTAttention(size, num_heads)
        self.layernorm_after = nn.LayerNorm(size, eps=1e-5)
        self.intermediate = _named("dense", nn.Linear(size, 2 * size))
        self.output = _named("dense", nn.Linear(2 * size, size))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.layernorm_before(x))
        return x + self.output(F.silu(self.intermediate(self.layernorm_after(x))))


class MobileViTTransformer(nn.Module):
    def __init__(self, size: int, depth: int, num_heads: int):
        super().__init__()
        self.layer = nn.ModuleList(MobileViTTransformerLayer(size, num_heads) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layer:
            x = layer(x)
        return x


class MobileViTConvStage(nn.Module):
    def __init__(self, in_channels: int, channels: int, depth: int, expand_ratio: int, stride: int):
        super().__init__()
        widths = [in_channels] + [channels] * depth
        self.layer = nn.ModuleList(
            InvertedResidual(width, channels, expand_ratio, nn.SiLU, stride=stride if index == 0 else 1)
            for index, width in enumerate(widths[:-1])
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layer:
            x = layer(x)
        return x


class MobileViTStage(nn.Module):
    """An inverted residual, then a transformer over the pixels at the same place of each 2×2 patch."""

    def __init__(self, config: MobileViTConfig, index: int):
        super().__init__()
        in_channels, channels = config.hidden_sizes[index + 1 : index + 3]
        size, depth = config.transformer_sizes[index], config.depths[index]
        self.downsampling_layer = InvertedResidual(
            in_channels, channels, config.expand_ratio, nn.SiLU, STRIDES[index], DILATIONS[index]
        )
        self.conv_kxk = ConvNormAct(channels, channels, 3, activation=nn.SiLU)
        self.conv_1x1 = _named("convolution", nn.Conv2d(channels, size, kernel_size=1, bias=False))
        self.transformer = MobileViTTransformer(size, depth, config.num_attention_heads)
        self.layernorm = nn.LayerNorm(size, eps=1e-5)
        # Without activation, unlike the paper's network and the ImageNet files: as CIRKD distills it.
        self.conv_projection = ConvNormAct(size, channels, 1)
        self.fusion = ConvNormAct(2 * channels, channels, 3, activation=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        residual = x = self.downsampling_layer(x)
        x = self.conv_1x1(self.conv_kxk(x))
        size = x.shape[-2:]
        # Patches that cover the map. As a ceiling of negatives, torch.export sees that their pixels are a multiple.
        rows, columns = (-(-length // PATCH_SIZE) for length in size)
        x = _resize(x, (PATCH_SIZE * rows, PATCH_SIZE * columns))
        x = self.layernorm(self.transformer(_unfold(x)))
        x = self.conv_projection(_resize(_fold(x, rows, columns), size))
        return self.fusion(torch.cat([residual, x], dim=1))


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps of even size come out as they are. To ask for that first would bind an exported program to odd sizes."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _unfold(x: Tensor) -> Tensor:
    """`(B, C, h, w)` to `(4B, hw/4, C)`: one sequence for each of the four places in a patch."""
    x = F.pixel_unshuffle(x, PATCH_SIZE).unflatten(1, (-1, PATCH_SIZE**2))
    return x.permute(0, 2, 3, 4, 1).flatten(2, 3).flatten(0, 1)


def _fold(x: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of `_unfold`, for maps of `rows` by `columns` patches."""
    x = x.unflatten(0, (-1, PATCH_SIZE**2)).unflatten(2, (rows, columns))
    return F.pixel_shuffle(x.permute(0, 4, 1, 2, 3).flatten(1, 2), PATCH_SIZE)


class MobileViTEncoder(nn.Module):
    def __init__(self, config: MobileViTConfig):
        super().__init__()
        self.layer = nn.ModuleList()
        in_channels = STEM_CHANNELS
        for channels, depth, stride in zip(config.hidden_sizes, INVERTED_RESIDUALS, (1, 2), strict=False):
            self.layer.append(MobileViTConvStage(in_channels, channels, depth, config.expand_ratio, stride))
            in_channels = channels
        self.layer.extend(MobileViTStage(config, index) for index in range(len(STRIDES)))

    def forward(self, x: Tensor) -> list[Tensor]:
        hidden_states = []
        for layer in self.layer:
            x = layer(x)
            hidden_states.append(x)
        return hidden_states


class MobileViTBackbone(MobileBackbone):
    """MobileViT with the last two strides replaced by dilation 2 and 4 of the depthwise convolutions.

    Stages end at strides 2, 2, 4 and then 8; the last is the 1×1 convolution after the transformers. Maps of odd size
    are resized to even ones around each transformer.

    Args:
        config (`MobileViTConfig`): The network.

    Differs from the paper: no activation after a transformer's projection, as in CIRKD. ImageNet files were trained
    with one, and load all the same.

    Reference: Mehta and Rastegari, MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer,
    ICLR 2022, https://huggingface.co/papers/2110.02178
    """

    config: MobileViTConfig
    _no_split_modules = ["InvertedResidual", "MobileViTStage"]

    def __init__(self, config: MobileViTConfig):
        super().__init__(config)
        self.conv_stem = ConvNormAct(config.num_channels, STEM_CHANNELS, 3, stride=2, activation=nn.SiLU)
        self.encoder = MobileViTEncoder(config)
        last = config.hidden_sizes[-1]
        self.conv_1x1_exp = ConvNormAct(last, 4 * last, 1, activation=nn.SiLU)
        self.post_init()

    def stages(self, pixel_values: Tensor) -> list[Tensor]:
        x = self.conv_stem(pixel_values)
        hidden_states = self.encoder(x)
        return [x, *hidden_states, self.conv_1x1_exp(hidden_states[-1])]


# Here and not in the package, so that released folders bring it along with their code.
AutoConfig.register(MobileViTConfig.model_type, MobileViTConfig, exist_ok=True)
AutoBackbone.register(MobileViTConfig, MobileViTBackbone, exist_ok=True)
BACKBONES.update(PRESETS)
