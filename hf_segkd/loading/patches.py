"""Vision transformers of one scale: which image sizes they can read, and their token sequences as maps."""

from torch import Tensor
from transformers import PreTrainedConfig

# At other sizes these fail somewhere inside or, where the number of patches happens to agree, scramble their maps.
FIXED_SIZE = ("data2vec-vision", "eomt", "eomt_dinov3")
SQUARE = ("dpt",)
# Their sequences end with the patches, row by row; class, register and query tokens come first.
PATCH_SEQUENCES = ("beit", "dpt", *FIXED_SIZE)


def check_input_size(config: PreTrainedConfig, size: tuple[int, int]) -> None:
    """Refuse an image size that a model cannot read, or would read wrongly.

    Args:
        config (`PreTrainedConfig`): Of any segmentation model; those that take every size are let through.
        size (`tuple[int, int]`): Height and width of the images, in pixels.

    Raises:
        ValueError: Not the one size of Data2Vec or EoMT, not square for DPT, or no multiple of BEiT's patches.
    """
    kind, (height, width) = config.model_type, size
    if kind not in PATCH_SEQUENCES:
        return
    side, patch = config.image_size, config.patch_size
    if kind in FIXED_SIZE and (height, width) != (side, side):
        reads = f"images of {side}x{side} pixels only"
    elif kind in SQUARE and height != width:
        reads = "square images only"
    elif height % patch or width % patch:
        reads = f"images whose sides are multiples of its patch size, {patch} pixels"
    else:
        return
    raise ValueError(
        f"This model ({kind}) reads {reads}, got {height}x{width}. Set crop_size accordingly, or take a teacher that "
        "reads any size, such as SegFormer, UperNet or Mask2Former."
    )


def state_maps(
    states: tuple[Tensor, ...] | None, config: PreTrainedConfig, size: tuple[int, int]
) -> tuple[Tensor, ...] | None:
    """Bring a model's hidden states to maps.

    Args:
        states (`tuple[torch.Tensor, ...]`, *optional*): Maps `(B, C, h, w)`, which stay, or sequences `(B, N, C)`.
        config (`PreTrainedConfig`): Of the model that returned them.
        size (`tuple[int, int]`): Height and width of the images, in pixels.

    Returns:
        `tuple[torch.Tensor, ...]`: Maps `(B, C, h, w)`; `None` for sequences whose order is not known here, such as
        those of a vision transformer inside UperNet.
    """
    if states is None or all(state.ndim == 4 for state in states):
        return states
    if config.model_type not in PATCH_SEQUENCES:
        return None
    height, width = size[0] // config.patch_size, size[1] // config.patch_size
    return tuple(state[:, -height * width :].transpose(1, 2).unflatten(2, (height, width)) for state in states)
