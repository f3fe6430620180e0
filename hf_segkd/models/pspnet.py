"""PSPNet: the last map of a backbone beside its averages over grids of several sizes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .heads import HeadConvNormAct, SegmentationConfig, SegmentationModel, dropout


class PSPNetConfig(SegmentationConfig):
    """Configuration of [`PSPNetForSemanticSegmentation`]. The defaults are CIRKD's on a ResNet-18.

    Further fields: those of [`SegmentationConfig`]. `hidden_size` is 128 on a mobile backbone or a ResNet of basic
    blocks, else 256; CIRKD's first version, CSKD, Structured KD and CWD have 512 on a ResNet-101.

    Args:
        pool_sizes (`tuple[int, ...]`, *optional*, defaults to `(1, 2, 3, 6)`): Cells per side of each grid.
        pool_hidden_size (`int`, *optional*): Channels of each averaged map. `None` is a quarter of the backbone's
            (CIRKD, CSKD); Structured KD and CWD have `hidden_size`.
        input_first (`bool`, *optional*, defaults to `True`): Whether the backbone's map precedes the averaged ones
            where they are joined (CIRKD, CSKD) or follows them (Structured KD, CWD).

    Raises:
        ValueError: No pool size, or one below 1; and as [`SegmentationConfig`].
    """

    model_type = "segkd_pspnet"

    pool_sizes: tuple[int, ...] | list[int] = (1, 2, 3, 6)
    pool_hidden_size: int | None = None
    input_first: bool = True

    def __post_init__(self, **kwargs):
        self.pool_sizes = tuple(self.pool_sizes)
        if not self.pool_sizes or min(self.pool_sizes) < 1:
            raise ValueError(f"pool_sizes must be numbers of cells, at least 1, got {self.pool_sizes}.")
        super().__post_init__(**kwargs)

    def default_hidden_size(self) -> int:
        is_small = self.is_mobile or self.backbone_config.to_dict().get("layer_type") == "basic"
        return 128 if is_small else 256


class PSPNetPyramid(nn.Module):
    """Averages over grids, each through a 1×1 convolution and upsampled, joined with the map itself."""

    def __init__(self, config: PSPNetConfig, in_channels: int):
        super().__init__()
        width = config.pool_hidden_size or max(in_channels // 4, 1)
        self.pool_sizes = config.pool_sizes
        self.input_first = config.input_first
        self.convs = nn.ModuleList(HeadConvNormAct(config, in_channels, width, kernel_size=1) for _ in self.pool_sizes)
        self.out_channels = in_channels + len(self.pool_sizes) * width

    def forward(self, x: Tensor) -> Tensor:
        pooled = [conv(F.adaptive_avg_pool2d(x, size)) for conv, size in zip(self.convs, self.pool_sizes, strict=True)]
        maps = [F.interpolate(item, size=x.shape[-2:], mode="bilinear", align_corners=True) for item in pooled]
        return torch.cat([x, *maps] if self.input_first else [*maps, x], dim=1)


class PSPNetHead(nn.Module):
    def __init__(self, config: PSPNetConfig, channels: list[int]):
        super().__init__()
        self.psp = PSPNetPyramid(config, channels[-1])
        self.bottleneck = HeadConvNormAct(config, self.psp.out_channels, config.hidden_size, kernel_size=3)
        self.dropout = dropout(config, config.classifier_dropout)
        self.classifier = nn.Conv2d(config.hidden_size, config.num_labels, kernel_size=1)

    def forward(self, hidden_states: tuple[Tensor, ...]) -> Tensor:
        return self.dropout(self.bottleneck(self.psp(hidden_states[-1])))


class PSPNetForSemanticSegmentation(SegmentationModel):
    """PSPNet on any backbone, for images of any size.

    Logits have the size of the backbone's last map: stride 8 on the dilated ones. `features` is what the classifier
    reads, after dropout, as the originals distill it (`hidden_size` channels). `hidden_states` are the maps that the
    backbone returns.

    Args:
        config (`PSPNetConfig`): The network, with `id2label` naming the classes.

    Raises:
        ValueError: An auxiliary head on a backbone that returns a single map.

    Differs from the original: biases start at zero; Structured KD's and CWD's InPlaceABN is an ordinary batch norm
    followed by its leaky ReLU.

    Reference: Zhao et al., Pyramid Scene Parsing Network, CVPR 2017, https://huggingface.co/papers/1612.01105
    """

    config: PSPNetConfig
    head_class = PSPNetHead
