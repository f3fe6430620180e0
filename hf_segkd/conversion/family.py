"""A family of original checkpoints, described by data."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedConfig

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """How the checkpoints of one code base become models of ours.

    Args:
        name (`str`): Shown to the user.
        signature (`str`): Regular expression that matches a key of these checkpoints and of no other family's.
        rename (`tuple[tuple[str, str], ...]`): Ordered pairs of a regular expression on the original key and its
            replacement; the first that matches is applied. A key that none matches is an error.
        config (`Callable`): The model's config, from the shapes of the original tensors.
        operations (`tuple[Callable, ...]`): Functions from renamed state dict to state dict, where names are not all
            that differs.
    """

    name: str
    signature: str
    rename: tuple[tuple[str, str], ...]
    config: Callable[[StateDict], PreTrainedConfig]
    operations: tuple[Callable[[StateDict], StateDict], ...] = ()

    def matches(self, state_dict: StateDict) -> bool:
        return any(re.search(self.signature, key) for key in state_dict)

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

    def matches(self, state_dict: StateDict) -> bool:
        return any(re.search(self.signature, key) for key in state_dict)
