"""A family of original checkpoints, described by data."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from hf_segkd.models.heads import SegmentationConfig

StateDict = dict[str, Tensor]

# Of a network trained on BGR bytes minus their mean, once its first convolution reads RGB.
RGB_BYTES = {
    "do_rescale": False,
    "image_mean": (122.67891434, 116.66876762, 104.00698793),
    "image_std": (1.0, 1.0, 1.0),
}


@dataclass(frozen=True)
class Family:
    """How the checkpoints of one code base become models of ours.

    Args:
        name (`str`): Shown to the user.
        signature (`str` or `tuple[str, ...]`): Regular expression that matches a key of these checkpoints and of no
            other family's; of several, each must match one.
        rename (`tuple[tuple[str, str], ...]`): Ordered pairs of a regular expression on the original key and its
            replacement; the first that matches is applied. A key that none matches is an error.
        config (`Callable`): The model's config, from the shapes of the original tensors.
        operations (`tuple[Callable, ...]`): Functions from renamed state dict to state dict, where names are not all
            that differs.
        processor (`dict[str, Any]`): Arguments of the image processor, `align_corners` excepted.
        dropped (`str`, *optional*): Regular expression for the original keys that the network never uses; by default
            the ImageNet classifier that some trainers leave beside it.
        checked (`str`): What the conversion was compared with, shown to the user.
    """

    name: str
    signature: str | tuple[str, ...]
    rename: tuple[tuple[str, str], ...]
    config: Callable[[StateDict], PreTrainedConfig]
    operations: tuple[Callable[[StateDict], StateDict], ...] = ()
    processor: dict[str, Any] = field(default_factory=dict)
    dropped: str = r"^fc\."
    checked: str = ""

    def matches(self, state_dict: StateDict) -> bool:
        signatures = (self.signature,) if isinstance(self.signature, str) else self.signature
        return all(any(re.search(signature, key) for key in state_dict) for signature in signatures)

    def translate(self, key: str) -> str | None:
        """Our name of an original key, `None` for a key that the family does not have."""
        for pattern, replacement in self.rename:
            if re.search(pattern, key):
                return re.sub(pattern, replacement, key)
        return None


@dataclass(frozen=True)
class Part:
    """The share of one backbone or one head in a family: code bases combine the same parts in several networks.

    Args:
        name (`str`): Shown to the user.
        signature (`str`): Regular expression that matches a key of this part and of no other backbone or head.
        rename (`tuple[tuple[str, str], ...]`): As in [`Family`]; a backbone's targets begin with `backbone.`.
        config (`Callable`): From the original tensors: a backbone's config, or the fields of a head's config.
        input_convolution (`str`, *optional*): Our name of a backbone's first weight, whose channels are reversed where
            the originals read BGR.
        operations (`tuple[Callable, ...]`): As in [`Family`].
    """

    name: str
    signature: str
    rename: tuple[tuple[str, str], ...]
    config: Callable[[StateDict], PreTrainedConfig | dict]
    input_convolution: str | None = None
    operations: tuple[Callable[[StateDict], StateDict], ...] = ()


def compose(
    name: str, backbone: Part, head: Part, config_class: type[SegmentationConfig], checked: str, **fields: Any
) -> Family:
    """The family of a backbone under a head, of originals that read BGR.

    Their models read RGB: reversing the input channels of the first convolution is exact.

    Args:
        name (`str`), checked (`str`): As in [`Family`].
        backbone (`Part`), head (`Part`): Their rules are tried in this order.
        config_class (`type`): Config of the whole model.
        fields: Fields of the config that no shape tells.
    """

    def config(state_dict: StateDict) -> SegmentationConfig:
        return config_class(backbone_config=backbone.config(state_dict), **head.config(state_dict), **fields)

    def read_rgb(weights: StateDict) -> StateDict:
        key = backbone.input_convolution
        return weights | {key: weights[key].flip(1)} if key in weights else weights

    return Family(
        name=name,
        signature=(backbone.signature, head.signature),
        rename=backbone.rename + head.rename,
        config=config,
        operations=(*backbone.operations, *head.operations, read_rgb),
        processor=RGB_BYTES,
        checked=checked,
    )
