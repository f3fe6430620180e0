"""UperNet as CIRKD has it: a pyramid on the last map, merged downwards with the shallower ones."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .heads import HeadConvNormAct, SegmentationConfig, SegmentationModel, dropout


class UperNetConfig(SegmentationConfig):
    """Configuration of [`UperNetForSemanticSegmentation`]. The defaults are CIRKD's lite network on a ResNet-18.

    Further fields: those of [`SegmentationConfig`]. `hidden_size` is 128, or 512 in CIRKD's full network;
    `classifier_dropout` defaults to 0.

    Args:
        pool_sizes (`tuple[int, ...]`, *optional*, defaults to `(1, 2, 3, 6)`): Cells per side of each grid.
        pool_hidden_size (`int`, *optional*, defaults to `512`): Channels of each averaged map.

    Raises:
        ValueError: No pool size, or one below 1; and as [`SegmentationConfig`].
    """

    model_type = "segkd_upernet"

    classifier_dropout: float = 0.0
    pool_sizes: tuple[int, ...] | list[int] = (1, 2, 3, 6)
    pool_hidden_size: int = 512

    def __post_init__(self, **kwargs):
        self.pool_sizes = tuple(self.pool_sizes)
        if not self.pool_sizes or min(self.pool_sizes) < 1:
            raise ValueError(f"pool_sizes must be numbers of cells, at least 1, got {self.pool_sizes}.")
        super().__post_init__(**kwargs)

    def default_hidden_size(self) -> int:
        return 128


def resize(x: Tensor, reference: Tensor) -> Tensor:
    return F.interpolate(x, size=reference.shape[-2:], mode="bilinear", align_corners=False)


class UperNetPyramid(nn.Module):
    """Averages over grids, each upsampled before its 1×1 convolution, joined with the map itself."""

    def __init__(self, config: UperNetConfig, in_channels: int):
        super().__init__()
        width = config.pool_hidden_size
        self.pool_sizes = config.pool_sizes
        self.convs = nn.ModuleList(HeadConvNormAct(config, in_channels, width, kernel_size=1) for _ in self.pool_sizes)
        self.out_channels = in_channels + len(self.pool_sizes) * width

    def forward(self, x: Tensor) -> Tensor:
        pooled = [resize(F.adaptive_avg_pool2d(x, size), x) for size in self.pool_sizes]
        return torch.cat([x, *(conv(item) for conv, item in zip(self.convs, pooled, strict=True))], dim=1)


class UperNetHead(nn.Module):
    """Pyramid and lateral maps at one width, summed from deep to shallow, joined at the size of the first."""

    def __init__(self, config: UperNetConfig, channels: list[int]):
        super().__init__()
        width = config.hidden_size
        self.psp = UperNetPyramid(config, channels[-1])
        self.bottleneck = HeadConvNormAct(config, self.psp.out_channels, width, kernel_size=3)
        self.lateral_convs = nn.ModuleList(
            HeadConvNormAct(config, item, width, kernel_size=1) for item in channels[:-1]
        )
        self.fpn_convs = nn.ModuleList(HeadConvNormAct(config, width, width, kernel_size=3) for _ in channels[:-1])
        self.fpn_bottleneck = HeadConvNormAct(config, len(channels) * width, width, kernel_size=3, stride=2)
        self.dropout = dropout(config, config.classifier_dropout)
        self.classifier = nn.Conv2d(width, config.num_labels, kernel_size=1)

    def forward(self, hidden_states: tuple[Tensor, ...]) -> Tensor:
        top = merged = self.bottleneck(self.psp(hidden_states[-1]))
        maps = [top]
        shallower = zip(self.lateral_convs, self.fpn_convs, hidden_states[:-1], strict=True)
        for lateral_conv, fpn_conv, hidden_state in reversed(list(shallower)):
            lateral = lateral_conv(hidden_state)
            merged = lateral + resize(merged, lateral)
            maps.insert(0, fpn_conv(merged))
        joined = torch.cat([maps[0], *(resize(item, maps[0]) for item in maps[1:])], dim=1)
        return self.dropout(self.fpn_bottleneck(joined))


class UperNetForSemanticSegmentation(SegmentationModel):
    """UperNet on any backbone, for images of any size. Not transformers' own, which no CIRKD checkpoint fits.

    Logits have half the size of the backbone's first map: stride 8 on the dilated ones. `features` is what the
    classifier reads (`hidden_size` channels). `hidden_states` are the maps that the backbone returns.

    Args:
        config (`UperNetConfig`): The network, with `id2label` naming the classes.

    Raises:
        ValueError: An auxiliary head on a backbone that returns a single map.

    Differs from the original: biases start at zero; the auxiliary head can be left out.

    Reference: Xiao et al., Unified Perceptual Parsing for Scene Understanding, ECCV 2018,
    https://huggingface.co/papers/1807.10221
    """

    config: UperNetConfig
    head_class = UperNetHead
