"""ESPNet and ESPNet-C: an encoder of dilated spatial pyramids, with or without a decoder."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import can_return_tuple

from .compat import DataclassConfig, init
from .outputs import SegmentationOutput, segmentation_loss

# Five parallel branches share the output channels of a block, so none has any below this width.
MIN_CHANNELS = 5


# The released weights read BGR images of 0 to 255, with the statistics of CamVid and Cityscapes.
PROCESSOR = {
    "do_rescale": False,
    "do_flip_channel_order": True,
    "image_mean": (73.18188461, 82.93553322, 72.41519599),
    "image_std": (45.3199, 46.1528, 44.9148),
}


class ESPNetConfig(DataclassConfig):
    """Configuration of [`ESPNetForSemanticSegmentation`]. The defaults are the published network.

    Args:
        hidden_sizes (`tuple[int, int, int]`, *optional*, defaults to `(16, 64, 128)`): Output channels of the stem and
            of the two stages; those of the stages at least 5.
        depths (`tuple[int, int]`, *optional*, defaults to `(2, 8)`): Blocks of each stage after its down-sampler
            (p and q in the paper), at least 1.
        use_decoder (`bool`, *optional*, defaults to `True`): `True` is ESPNet, which needs at least 5 classes; `False`
            is ESPNet-C, a classifier on the encoder.
        num_channels (`int`, *optional*, defaults to `3`): Channels of the images.
        align_corners (`bool`, *optional*, defaults to `True`): How logits below image size are upsampled.
        semantic_loss_ignore_index (`int`, *optional*, defaults to `255`): Label that the loss skips.

    Raises:
        ValueError: A wrong number of widths or depths, or one too small.
    """

    model_type = "segkd_espnet"

    hidden_sizes: tuple[int, ...] | list[int] = (16, 64, 128)
    depths: tuple[int, ...] | list[int] = (2, 8)
    use_decoder: bool = True
    num_channels: int = 3
    align_corners: bool = True
    semantic_loss_ignore_index: int = 255

    def __post_init__(self, **kwargs):
        # JSON knows lists only: a config read back must equal the one saved.
        self.hidden_sizes, self.depths = tuple(self.hidden_sizes), tuple(self.depths)
        if len(self.hidden_sizes) != 3 or self.hidden_sizes[0] < 1 or min(self.hidden_sizes[1:]) < MIN_CHANNELS:
            raise ValueError(
                f"hidden_sizes must be three widths, the first at least 1 and the others at least {MIN_CHANNELS}, "
                f"got {self.hidden_sizes}."
            )
        if len(self.depths) != 2 or min(self.depths) < 1:
            raise ValueError(f"depths must be two numbers of blocks, at least 1 each, got {self.depths}.")
        super().__post_init__(**kwargs)


class ESPNetNormAct(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.normalization = nn.BatchNorm2d(channels, eps=1e-3)
        self.activation = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.normalization(x))


class ESPNetConvNormAct(ESPNetNormAct):
    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__(out_channels)
        self.convolution = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.convolution(x))


class ESPNetBlock(ESPNetNormAct):
    """Efficient spatial pyramid: reduce, five dilated convolutions in parallel, fused by running sums."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__(out_channels)
        branch = out_channels // 5
        first = out_channels - 4 * branch
        self.residual = stride == 1 and in_channels == out_channels
        kernel_size = 3 if stride == 2 else 1
        self.c1 = nn.Conv2d(in_channels, branch, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)
        self.d1 = nn.Conv2d(branch, first, 3, padding=1, bias=False)
        self.d2 = nn.Conv2d(branch, branch, 3, padding=2, dilation=2, bias=False)
        self.d4 = nn.Conv2d(branch, branch, 3, padding=4, dilation=4, bias=False)
        self.d8 = nn.Conv2d(branch, branch, 3, padding=8, dilation=8, bias=False)
        self.d16 = nn.Conv2d(branch, branch, 3, padding=16, dilation=16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.c1(x)
        sum_2 = self.d2(reduced)
        sum_4 = sum_2 + self.d4(reduced)
        sum_8 = sum_4 + self.d8(reduced)
        sum_16 = sum_8 + self.d16(reduced)
        fused = torch.cat([self.d1(reduced), sum_2, sum_4, sum_8, sum_16], dim=1)
        return super().forward(fused + x if self.residual else fused)


class ESPNetStage(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, depth: int):
        super().__init__()
        self.downsample = ESPNetBlock(in_channels, out_channels, stride=2)
        self.layers = nn.ModuleList(ESPNetBlock(out_channels, out_channels) for _ in range(depth))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = last = self.downsample(x)
        for layer in self.layers:
            last = layer(last)
        return first, last


class ESPNetEncoder(nn.Module):
    """Three maps at strides 2, 4 and 8; the pooled image is added to the first two."""

    def __init__(self, config: ESPNetConfig):
        super().__init__()
        stem, middle, last = config.hidden_sizes
        self.channels = [stem + config.num_channels, 2 * middle + config.num_channels, 2 * last]
        self.stem = ESPNetConvNormAct(config.num_channels, stem, stride=2)
        self.pool = nn.AvgPool2d(kernel_size=3, stride=2, padding=1)
        self.norms = nn.ModuleList(ESPNetNormAct(channels) for channels in self.channels)
        self.stages = nn.ModuleList(
            [
                ESPNetStage(self.channels[0], middle, config.depths[0]),
                ESPNetStage(self.channels[1], last, config.depths[1]),
            ]
        )

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        half = self.pool(pixel_values)
        quarter = self.pool(half)
        map_2 = self.norms[0](torch.cat([self.stem(pixel_values), half], dim=1))
        first, last = self.stages[0](map_2)
        map_4 = self.norms[1](torch.cat([last, first, quarter], dim=1))
        first, last = self.stages[1](map_4)
        map_8 = self.norms[2](torch.cat([first, last], dim=1))
        return map_2, map_4, map_8


class ESPNetHead(nn.Module):
    def __init__(self, in_channels: int, num_labels: int):
        super().__init__()
        self.classifier = nn.Conv2d(in_channels, num_labels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x)


class ESPNetDecoder(nn.Module):
    """From the encoder's logits at stride 8 to logits at image size, joined with the maps at strides 4 and 2."""

    def __init__(self, config: ESPNetConfig, channels: list[int]):
        super().__init__()
        classes = config.num_labels
        self.auxiliary_norm = nn.BatchNorm2d(classes, eps=1e-3)
        self.upsample_3 = _upsample(classes)
        self.lateral = nn.Conv2d(channels[1], classes, kernel_size=1, bias=False)
        self.combine_norm = ESPNetNormAct(2 * classes)
        self.combine = ESPNetBlock(2 * classes, classes)
        self.upsample_2 = _upsample(classes)
        self.upsample_2_norm = ESPNetNormAct(classes)
        self.fuse = ESPNetConvNormAct(classes + channels[0], classes)
        self.classifier = _upsample(classes)

    def forward(self, aux_logits: Tensor, map_4: Tensor, map_2: Tensor, size: tuple[int, int]) -> Tensor:
        x = _crop(self.upsample_3(self.auxiliary_norm(aux_logits)), map_4.shape[-2:])
        x = self.combine(self.combine_norm(torch.cat([self.lateral(map_4), x], dim=1)))
        x = self.upsample_2_norm(_crop(self.upsample_2(x), map_2.shape[-2:]))
        x = self.fuse(torch.cat([x, map_2], dim=1))
        return _crop(self.classifier(x), size)


def _upsample(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2, bias=False)


def _crop(x: Tensor, size: tuple[int, int]) -> Tensor:
    is_free = isinstance(size[0], torch.SymInt) or isinstance(size[1], torch.SymInt)
    if is_free and not torch.onnx.is_in_onnx_export():
        # torch.export cannot prove that 2 * ceil(side / 2) pixels are enough for a slice of `side`. The ONNX exporter
        # does not ask, and its files run slices several times as fast.
        rows = torch.arange(size[0], device=x.device)
        columns = torch.arange(size[1], device=x.device)
        return x.index_select(-2, rows).index_select(-1, columns)
    return x[..., : size[0], : size[1]]


class ESPNetForSemanticSegmentation(PreTrainedModel):
    """ESPNet (`config.use_decoder`) or ESPNet-C, for images of any size.

    ESPNet's logits have the image's size, and its auxiliary logits are those of the encoder, at stride 8. ESPNet-C's
    logits are the encoder's, and it has no auxiliary ones. `features` is the encoder's output at stride 8 (256
    channels at the default widths): after its last norm and activation, before the 1×1 classifier; there is no
    dropout. `hidden_states` are the encoder's three maps at strides 2, 4 and 8.

    Args:
        config (`ESPNetConfig`): The network, with `id2label` naming the classes.

    Raises:
        ValueError: A decoder for fewer than 5 classes.

    Differs from the original: sizes that are no multiples of 8 work, by cropping what the decoder upsamples; weights
    start from Kaiming's normal distribution.

    Reference: Mehta et al., ESPNet: Efficient Spatial Pyramid of Dilated Convolutions for Semantic Segmentation, ECCV
    2018, https://huggingface.co/papers/1803.06815
    """

    config: ESPNetConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = False
    _no_split_modules = ["ESPNetBlock"]

    def __init__(self, config: ESPNetConfig):
        super().__init__(config)
        if config.use_decoder and config.num_labels < MIN_CHANNELS:
            raise ValueError(
                f"ESPNet's decoder needs at least {MIN_CHANNELS} classes, got {config.num_labels}. "
                "Set use_decoder=False (ESPNet-C) or give id2label with more classes."
            )
        self.encoder = ESPNetEncoder(config)
        channels = self.encoder.channels
        head = ESPNetHead(channels[-1], config.num_labels)
        if config.use_decoder:
            self.auxiliary_head = head
            self.decode_head = ESPNetDecoder(config, channels)
        else:
            self.decode_head = head
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            init.kaiming_normal_(module.weight, a=0.25, nonlinearity="leaky_relu")
        elif isinstance(module, nn.PReLU):
            init.constant_(module.weight, 0.25)
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, output_hidden_states: bool | None = None
    ) -> SegmentationOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): Images as the model's processor gives them.
            labels (`torch.Tensor` of shape `(B, H, W)`, *optional*): Class ids; the loss is on the logits alone.
            output_hidden_states (`bool`, *optional*): Whether to return the encoder's maps.
            return_dict (`bool`, *optional*): `False` returns a tuple of the fields that are not `None`.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = map_2, map_4, features = self.encoder(pixel_values)
        if self.config.use_decoder:
            aux_logits = self.auxiliary_head(features)
            logits = self.decode_head(aux_logits, map_4, map_2, pixel_values.shape[-2:])
        else:
            aux_logits, logits = None, self.decode_head(features)
        loss = None
        if labels is not None:
            ignore_index = self.config.semantic_loss_ignore_index
            loss = segmentation_loss(logits, labels, ignore_index, self.config.align_corners)
        return SegmentationOutput(
            loss=loss,
            logits=logits,
            aux_logits=aux_logits,
            features=features,
            hidden_states=hidden_states if output_hidden_states else None,
        )
