"""What the mobile backbones share: the layer, the block, and the frame of a backbone."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BackboneOutput
from transformers.utils import can_return_tuple

from .checkpointing import CheckpointedLayer
from .compat import BackboneConfigMixin, BackboneMixin, DataclassConfig, init


class MobileBackboneConfig(BackboneConfigMixin, DataclassConfig):
    """Names the stages `"stem"`, `"stage1"`, ... by the number of `stage_channels`, which a subclass defines."""

    @property
    def stage_channels(self) -> list[int]:
        raise NotImplementedError

    def __post_init__(self, **kwargs):
        self.stage_names = ["stem"] + [f"stage{index}" for index in range(1, len(self.stage_channels))]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)


class ConvNormAct(nn.Module):
    """Convolution without bias, batch norm, activation. Padding keeps the size unless given."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        padding: int | None = None,
        activation: type[nn.Module] = nn.Identity,
    ):
        super().__init__()
        padding = dilation * (kernel_size // 2) if padding is None else padding
        self.convolution = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups=groups, bias=False
        )
        self.normalization = nn.BatchNorm2d(out_channels)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.normalization(self.convolution(x)))


class InvertedResidual(CheckpointedLayer):
    """Expand, filter each channel by itself, project without activation; a shortcut where the shape stays."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expand_ratio: int,
        activation: type[nn.Module],
        stride: int = 1,
        dilation: int = 1,
    ):
        super().__init__()
        width = in_channels * expand_ratio
        self.residual = stride == 1 and in_channels == out_channels
        self.expand_1x1 = ConvNormAct(in_channels, width, 1, activation=activation)
        self.conv_3x3 = ConvNormAct(width, width, 3, stride, dilation, groups=width, activation=activation)
        self.reduce_1x1 = ConvNormAct(width, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.reduce_1x1(self.conv_3x3(self.expand_1x1(x)))
        return x + out if self.residual else out


class MobileBackbone(BackboneMixin, PreTrainedModel):
    """Runs a subclass's `conv_stem` and `layer`, whose stages end at `stage_ends`; returns `config.out_features`."""

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    has_attentions = False

    def __init__(self, config: MobileBackboneConfig):
        super().__init__(config)
        self.num_features = config.stage_channels

    def stages(self, pixel_values: Tensor) -> list[Tensor]:
        """The map at the end of each stage, shallow to deep: of `conv_stem`, then after the blocks `stage_ends`."""
        x = self.conv_stem(pixel_values)
        hidden_states = [x]
        for index, block in enumerate(self.layer, start=1):
            x = block(x)
            if index in self.stage_ends:
                hidden_states.append(x)
        return hidden_states

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=0.02)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(self, pixel_values: Tensor, output_hidden_states: bool | None = None) -> BackboneOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): Normalized images of any size.
            output_hidden_states (`bool`, *optional*): Whether to return the maps of all stages.
            return_dict (`bool`, *optional*): `False` returns a tuple of the fields that are not `None`.

        Returns:
            `BackboneOutput`: `feature_maps`, one `(B, C, h, w)` for each of `config.out_features`.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = self.stages(pixel_values)
        maps = zip(self.stage_names, hidden_states, strict=True)
        return BackboneOutput(
            feature_maps=tuple(value for name, value in maps if name in self.out_features),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )
