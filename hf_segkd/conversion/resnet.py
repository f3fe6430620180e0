"""ResNets with torchvision's names and, for the deep stem, two convolutions more."""

import re
from typing import Any

from hf_segkd.conversion.family import Part, StateDict
from hf_segkd.models.dilated_resnet import DilatedResNetConfig


def resnet(prefix: str, **fields: Any) -> Part:
    """The backbone of one code base.

    Args:
        prefix (`str`): What its keys begin with, `"pretrained."` or nothing.
        fields: Fields of [`DilatedResNetConfig`] that no shape tells.
    """
    start = f"^{re.escape(prefix)}"

    def config(state_dict: StateDict) -> DilatedResNetConfig:
        stages = [f"{prefix}layer{stage}." for stage in (1, 2, 3, 4)]
        bottleneck = f"{stages[0]}0.conv3.weight" in state_dict
        last = "conv3" if bottleneck else "conv2"
        return DilatedResNetConfig(
            stem="deep" if f"{prefix}conv2.weight" in state_dict else "plain",
            stem_width=state_dict[f"{prefix}conv1.weight"].shape[0],
            hidden_sizes=[state_dict[f"{stage}0.{last}.weight"].shape[0] for stage in stages],
            depths=[_depth(state_dict, stage) for stage in stages],
            layer_type="bottleneck" if bottleneck else "basic",
            out_indices=[1, 2, 3, 4],
            **fields,
        )

    return Part(
        name="ResNet",
        signature=rf"{start}layer4\.0\.conv1\.weight$",
        rename=_rename(start),
        config=config,
        input_convolution="backbone.embedder.layers.0.convolution.weight",
    )


def _depth(state_dict: StateDict, stage: str) -> int:
    """From the number of the last block: one that is absent before it shows as missing keys."""
    matches = [re.match(rf"{re.escape(stage)}(\d+)\.", key) for key in state_dict]
    return max(int(match[1]) for match in matches if match) + 1


def _rename(start: str) -> tuple[tuple[str, str], ...]:
    rows = []
    for number, (convolution, norm) in enumerate((("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))):
        rows.append((rf"{start}{convolution}\.", f"backbone.embedder.layers.{number}.convolution."))
        rows.append((rf"{start}{norm}\.", f"backbone.embedder.layers.{number}.normalization."))
        for stage in range(4):
            original, target = rf"{start}layer{stage + 1}\.(\d+)\.", rf"backbone.encoder.stages.{stage}.layers.\1."
            rows.append((rf"{original}{convolution}\.", f"{target}layer.{number}.convolution."))
            rows.append((rf"{original}{norm}\.", f"{target}layer.{number}.normalization."))
    for stage in range(4):
        original, target = rf"{start}layer{stage + 1}\.(\d+)\.", rf"backbone.encoder.stages.{stage}.layers.\1."
        rows.append((rf"{original}downsample\.0\.", f"{target}shortcut.convolution."))
        rows.append((rf"{original}downsample\.1\.", f"{target}shortcut.normalization."))
    return tuple(rows)
