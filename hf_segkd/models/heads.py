"""The frame that the models with a backbone share: config, auxiliary head, forward pass."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, PreTrainedModel
from transformers.utils import can_return_tuple

from .backbones import resolve_backbone
from .compat import DataclassConfig, PreTrainedConfig, init
from .mobile_backbone import MobileBackboneConfig
from .outputs import SegmentationOutput, segmentation_loss


class SegmentationConfig(DataclassConfig):
    """Fields that all models with a backbone have.

    Args:
        backbone_config (`str`, `dict` or `PreTrainedConfig`, *optional*, defaults to `"resnet18"`): A short name of
            `BACKBONES`, or the config of any `AutoBackbone`. Also accepted as `backbone`.
        hidden_size (`int`, *optional*): Channels of the head and of `features`. Each model has its own default.
        classifier_dropout (`float`, *optional*, defaults to `0.1`): Rate before the classifier, in [0, 1).
        spatial_dropout (`bool`, *optional*, defaults to `False`): Whether dropout drops whole channels (Structured KD,
            CWD) instead of single values (CIRKD, CSKD).
        activation_slope (`float`, *optional*, defaults to `0.0`): Slope of the heads' activations below zero: 0 is
            ReLU (CIRKD, CSKD), Structured KD and CWD have 0.01.
        use_auxiliary_head (`bool`, *optional*): Whether the last map but one has a classifier of its own. `None` is
            yes, except on the mobile backbones.
        auxiliary_hidden_size (`int`, *optional*): Channels of the auxiliary head. `None` is a quarter of its input.
        auxiliary_conv_bias (`bool`, *optional*, defaults to `False`): Whether the auxiliary head's 3×3 convolution has
            a bias in spite of its norm (Structured KD, CWD).
        auxiliary_dropout (`float`, *optional*, defaults to `0.1`): Rate before the auxiliary classifier, in [0, 1).
        auxiliary_loss_weight (`float`, *optional*, defaults to `0.4`): Weight of its cross-entropy in `loss`.
        align_corners (`bool`, *optional*, defaults to `True`): How logits below image size are upsampled.
        semantic_loss_ignore_index (`int`, *optional*, defaults to `255`): Label that the loss skips.

    Raises:
        ValueError: An unknown backbone or two, a width below 1 or a rate outside [0, 1).
    """

    attribute_map = {"backbone": "backbone_config"}
    sub_configs = {"backbone_config": AutoConfig}

    backbone_config: str | dict | PreTrainedConfig | None = None
    hidden_size: int | None = None
    classifier_dropout: float = 0.1
    spatial_dropout: bool = False
    activation_slope: float = 0.0
    use_auxiliary_head: bool | None = None
    auxiliary_hidden_size: int | None = None
    auxiliary_conv_bias: bool = False
    auxiliary_dropout: float = 0.1
    auxiliary_loss_weight: float = 0.4
    align_corners: bool = True
    semantic_loss_ignore_index: int = 255

    def __post_init__(self, **kwargs):
        specs = [spec for spec in (kwargs.pop("backbone", None), self.backbone_config) if spec is not None]
        if len(specs) > 1:
            raise ValueError("backbone and backbone_config are two names of one field: give one of them.")
        self.backbone_config = resolve_backbone(specs[0] if specs else "resnet18")
        if self.hidden_size is None:
            self.hidden_size = self.default_hidden_size()
        if self.use_auxiliary_head is None:
            self.use_auxiliary_head = not self.is_mobile
        for name, value in vars(self).items():
            if name.endswith("hidden_size") and value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
            if name.endswith("dropout") and not isinstance(value, bool) and not 0 <= value < 1:
                raise ValueError(f"{name} is a rate and must be in [0, 1), got {value}.")
        super().__post_init__(**kwargs)

    @property
    def is_mobile(self) -> bool:
        return isinstance(self.backbone_config, MobileBackboneConfig)

    def default_hidden_size(self) -> int:
        raise NotImplementedError


class HeadConvNormAct(nn.Module):
    """Convolution that keeps the size at stride 1, batch norm, (leaky) ReLU."""

    def __init__(
        self,
        config: SegmentationConfig,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = False,
    ):
        super().__init__()
        padding = dilation * (kernel_size // 2)
        self.convolution = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation=dilation, bias=bias
        )
        self.normalization = nn.BatchNorm2d(out_channels)
        self.activation = nn.LeakyReLU(config.activation_slope) if config.activation_slope else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.normalization(self.convolution(x)))


def dropout(config: SegmentationConfig, rate: float) -> nn.Module:
    return nn.Dropout2d(rate) if config.spatial_dropout else nn.Dropout(rate)


class AuxiliaryHead(nn.Module):
    """Classifier on the last map but one, for a loss that reaches the backbone earlier."""

    def __init__(self, config: SegmentationConfig, in_channels: int):
        super().__init__()
        width = config.auxiliary_hidden_size or max(in_channels // 4, 1)
        self.conv = HeadConvNormAct(config, in_channels, width, kernel_size=3, bias=config.auxiliary_conv_bias)
        self.dropout = dropout(config, config.auxiliary_dropout)
        self.classifier = nn.Conv2d(width, config.num_labels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.conv(x)))


class SegmentationModel(PreTrainedModel):
    """A backbone, a head on its maps and an auxiliary one; a subclass names its `head_class`.

    A head is built from the config and the channels of the maps, and returns the features of the maps; its
    `classifier` turns these into logits.
    """

    config: SegmentationConfig
    head_class: type[nn.Module]
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True
    _no_split_modules = ["DilatedResNetLayer"]

    def __init__(self, config: SegmentationConfig):
        super().__init__(config)
        self.backbone = AutoBackbone.from_config(config.backbone_config)
        channels = self.backbone.channels
        self.decode_head = self.head_class(config, channels)
        if config.use_auxiliary_head:
            if len(channels) < 2:
                raise ValueError(
                    f"The auxiliary head reads the last map but one, the backbone returns {len(channels)}. "
                    "Name more stages in out_features of backbone_config, or set use_auxiliary_head=False."
                )
            self.auxiliary_head = AuxiliaryHead(config, channels[-2])
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))  # torch's default, which the originals keep
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, output_hidden_states: bool | None = None
    ) -> SegmentationOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): Images as the model's processor gives them. In
                training B must be at least 2: the heads' norms average over maps of one pixel.
            labels (`torch.Tensor` of shape `(B, H, W)`, *optional*): Class ids; the loss is on the logits, plus
                `auxiliary_loss_weight` times that on the auxiliary ones.
            output_hidden_states (`bool`, *optional*): Whether to return the backbone's maps.
            return_dict (`bool`, *optional*): `False` returns a tuple of the fields that are not `None`.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = tuple(self.backbone(pixel_values).feature_maps)
        features = self.decode_head(hidden_states)
        logits = self.decode_head.classifier(features)
        aux_logits = self.auxiliary_head(hidden_states[-2]) if self.config.use_auxiliary_head else None
        return SegmentationOutput(
            loss=None if labels is None else self._loss(logits, aux_logits, labels),
            logits=logits,
            aux_logits=aux_logits,
            features=features,
            hidden_states=hidden_states if output_hidden_states else None,
        )

    def _loss(self, logits: Tensor, aux_logits: Tensor | None, labels: Tensor) -> Tensor:
        options: dict[str, Any] = {
            "ignore_index": self.config.semantic_loss_ignore_index,
            "align_corners": self.config.align_corners,
        }
        loss = segmentation_loss(logits, labels, **options)
        if aux_logits is None:
            return loss
        return loss + self.config.auxiliary_loss_weight * segmentation_loss(aux_logits, labels, **options)
