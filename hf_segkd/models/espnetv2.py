"""ESPNetv2: an encoder of dilated depthwise convolutions and a decoder of pooling pyramids, at any width."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import can_return_tuple

from .compat import DataclassConfig, init
from .espnetv2_layers import ESPNetv2Decoder, ESPNetv2Encoder
from .outputs import SegmentationOutput, segmentation_loss

MIN_WIDTH = 0.5
WIDTH_STEP = 0.25
MAX_PYRAMID_SIZE = 16


class ESPNetv2Config(DataclassConfig):
    """Configuration of [`ESPNetv2ForSemanticSegmentation`].

    Args:
        width (`float`, *optional*, defaults to `1.0`): Multiplies the encoder's channels (s in the paper): a multiple
            of 0.25, at least 0.5. Released are 0.5, 1.0, 1.5 and 2.0.
        depths (`tuple[int, int]`, *optional*, defaults to `(3, 7)`): Blocks at strides 8 and 16 after the
            down-sampler, at least 1.
        pyramid_size (`int`, *optional*): Channels inside the decoder's pyramids, which the classifier reads. `None` is
            the original's rule, half the classes and at most 16: 10 for Cityscapes and Pascal VOC, 1 for two classes.
        num_channels (`int`, *optional*, defaults to `3`): Channels of the images.
        align_corners (`bool`, *optional*, defaults to `True`): How logits are upsampled by whoever resizes them.
        semantic_loss_ignore_index (`int`, *optional*, defaults to `255`): Label that the loss skips.

    Raises:
        ValueError: A width that is no such multiple, a wrong number of depths, or a size below 1.
    """

    model_type = "segkd_espnetv2"

    width: float | int = 1.0
    depths: tuple[int, ...] | list[int] = (3, 7)
    pyramid_size: int | None = None
    num_channels: int = 3
    align_corners: bool = True
    semantic_loss_ignore_index: int = 255

    def __post_init__(self, **kwargs):
        # JSON knows lists only: a config read back must equal the one saved.
        self.depths = tuple(self.depths)
        if self.width < MIN_WIDTH or self.width % WIDTH_STEP:
            raise ValueError(
                f"width must be a multiple of {WIDTH_STEP}, at least {MIN_WIDTH}, got {self.width}. "
                "Released are 0.5, 1.0, 1.5 and 2.0."
            )
        if len(self.depths) != 2 or min(self.depths) < 1:
            raise ValueError(f"depths must be two numbers of blocks, at least 1 each, got {self.depths}.")
        super().__post_init__(**kwargs)
        if self.pyramid_size is None:
            self.pyramid_size = min(max(self.num_labels // 2, 1), MAX_PYRAMID_SIZE)
        if self.pyramid_size < 1:
            raise ValueError(f"pyramid_size must be at least 1, got {self.pyramid_size}.")

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels at strides 2, 4, 8 and 16. The stem has 16 at the smallest width and 32 at any other."""
        stem = 16 if self.width == MIN_WIDTH else 32
        return [stem, *(round(channels * self.width) for channels in (64, 128, 256))]


class ESPNetv2ForSemanticSegmentation(PreTrainedModel):
    """ESPNetv2 with the decoder of its authors' EdgeNets, for images of any size.

    `logits` have the image's size, as the original's; there are no auxiliary ones. `features` is the encoder's last
    map at stride 16 (128, 256, 384 or 512 channels at widths 0.5 to 2.0): the map that the classifier reads has 10
    channels only, too few to hold what a teacher's features say. `hidden_states` are the encoder's four maps at
    strides 2, 4, 8 and 16; the last one is `features`.

    Args:
        config (`ESPNetv2Config`): The network, with `id2label` naming the classes.

    Differs from the original: sizes that are no multiples of 16 work, because maps are resized to the one they are
    added to; the activation that ends a down-sampler's block, which the original never runs, is left out.

    Reference: Mehta et al., ESPNetv2: A Light-weight, Power Efficient, and General Purpose Convolutional Neural
    Network, CVPR 2019, https://huggingface.co/papers/1811.11431
    """

    config: ESPNetv2Config
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = False
    _no_split_modules = ["ESPNetv2Block", "PoolingPyramid"]

    def __init__(self, config: ESPNetv2Config):
        super().__init__(config)
        self.encoder = ESPNetv2Encoder(config.hidden_sizes, config.depths, config.num_channels)
        self.decode_head = ESPNetv2Decoder(config.hidden_sizes, config.pyramid_size, config.num_labels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
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
            labels (`torch.Tensor` of shape `(B, H, W)`, *optional*): Class ids.
            output_hidden_states (`bool`, *optional*): Whether to return the encoder's maps.
            return_dict (`bool`, *optional*): `False` returns a tuple of the fields that are not `None`.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = self.encoder(pixel_values)
        half_size = self.decode_head(hidden_states)
        logits = F.interpolate(half_size, size=pixel_values.shape[-2:], mode="bilinear", align_corners=True)
        loss = None
        if labels is not None:
            ignore_index = self.config.semantic_loss_ignore_index
            loss = segmentation_loss(logits, labels, ignore_index, self.config.align_corners)
        return SegmentationOutput(
            loss=loss,
            logits=logits,
            features=hidden_states[-1],
            hidden_states=hidden_states if output_hidden_states else None,
        )
