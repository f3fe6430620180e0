"""DeepLabV3: dilated convolutions at several rates, and the image's mean, on the last map of a backbone."""

import torch
from torch import Tensor, nn

from .heads import HeadConvNormAct, SegmentationConfig, SegmentationModel, dropout


class DeepLabV3Config(SegmentationConfig):
    """Configuration of [`DeepLabV3ForSemanticSegmentation`]. The defaults are CIRKD's second version on a ResNet-18.

    Further fields: those of [`SegmentationConfig`]. `hidden_size` is 512, or 128 on a mobile backbone; CIRKD's first
    version and CSKD have 128 on a ResNet-18 and 256 on a ResNet-101.

    Args:
        dilations (`tuple[int, ...]`, *optional*, defaults to `(12, 24, 36)`): Rates of the parallel 3×3 convolutions.
        aspp_dropout (`float`, *optional*, defaults to `0.5`): Rate after the parallel branches are joined, in [0, 1).

    Raises:
        ValueError: No dilation, or one below 1; and as [`SegmentationConfig`].
    """

    model_type = "segkd_deeplabv3"

    dilations: tuple[int, ...] | list[int] = (12, 24, 36)
    aspp_dropout: float = 0.5

    def __post_init__(self, **kwargs):
        self.dilations = tuple(self.dilations)
        if not self.dilations or min(self.dilations) < 1:
            raise ValueError(f"dilations must be rates of at least 1, got {self.dilations}.")
        super().__post_init__(**kwargs)

    def default_hidden_size(self) -> int:
        return 128 if self.is_mobile else 512


class DeepLabV3Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: a 1×1 convolution, the dilated ones, and the mean of the whole map."""

    def __init__(self, config: DeepLabV3Config, in_channels: int):
        super().__init__()
        width = config.hidden_size
        self.convs = nn.ModuleList([HeadConvNormAct(config, in_channels, width, kernel_size=1)])
        for dilation in config.dilations:
            self.convs.append(HeadConvNormAct(config, in_channels, width, kernel_size=3, dilation=dilation))
        self.pool = HeadConvNormAct(config, in_channels, width, kernel_size=1)
        self.project = HeadConvNormAct(config, (len(self.convs) + 1) * width, width, kernel_size=1)
        self.dropout = dropout(config, config.aspp_dropout)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.pool(x.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        branches = [convolution(x) for convolution in self.convs]
        return self.dropout(self.project(torch.cat([*branches, mean], dim=1)))


class DeepLabV3Head(nn.Module):
    def __init__(self, config: DeepLabV3Config, channels: list[int]):
        super().__init__()
        width = config.hidden_size
        self.aspp = DeepLabV3Pyramid(config, channels[-1])
        self.bottleneck = HeadConvNormAct(config, width, width, kernel_size=3)
        self.dropout = dropout(config, config.classifier_dropout)
        self.classifier = nn.Conv2d(width, config.num_labels, kernel_size=1)

    def forward(self, hidden_states: tuple[Tensor, ...]) -> Tensor:
        return self.dropout(self.bottleneck(self.aspp(hidden_states[-1])))


class DeepLabV3ForSemanticSegmentation(SegmentationModel):
    """DeepLabV3 on any backbone, for images of any size.

    Logits have the size of the backbone's last map: stride 8 on the dilated ones. `features` is what the classifier
    reads, after dropout, as the originals distill it (`hidden_size` channels). `hidden_states` are the maps that the
    backbone returns.

    Args:
        config (`DeepLabV3Config`): The network, with `id2label` naming the classes.

    Raises:
        ValueError: An auxiliary head on a backbone that returns a single map.

    Differs from the original: biases start at zero; the auxiliary head can be left out.

    Reference: Chen et al., Rethinking Atrous Convolution for Semantic Image Segmentation, 2017,
    https://huggingface.co/papers/1706.05587
    """

    config: DeepLabV3Config
    head_class = DeepLabV3Head
