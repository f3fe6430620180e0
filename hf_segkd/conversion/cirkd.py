"""Networks of CIRKD (both versions) and CSKD: one of their backbones under one of their heads."""

from typing import Any

from hf_segkd.conversion.family import Family, Part, StateDict, compose
from hf_segkd.conversion.mobile import BACKBONES as MOBILE
from hf_segkd.conversion.resnet import resnet
from hf_segkd.models.deeplabv3 import DeepLabV3Config
from hf_segkd.models.pspnet import PSPNetConfig
from hf_segkd.models.upernet import UperNetConfig

RESNET = resnet(prefix="pretrained.")
BACKBONES: tuple[Part, ...] = (RESNET, *MOBILE)

AUXILIARY = (
    (r"^auxlayer\.block\.0\.", "auxiliary_head.conv.convolution."),
    (r"^auxlayer\.block\.1\.", "auxiliary_head.conv.normalization."),
    (r"^auxlayer\.block\.4\.", "auxiliary_head.classifier."),
)
DEEPLABV3_RENAME = (
    (r"^head\.aspp\.b0\.0\.", "decode_head.aspp.convs.0.convolution."),
    (r"^head\.aspp\.b0\.1\.", "decode_head.aspp.convs.0.normalization."),
    (r"^head\.aspp\.b([123])\.block\.0\.", r"decode_head.aspp.convs.\1.convolution."),
    (r"^head\.aspp\.b([123])\.block\.1\.", r"decode_head.aspp.convs.\1.normalization."),
    (r"^head\.aspp\.b4\.gap\.1\.", "decode_head.aspp.pool.convolution."),
    (r"^head\.aspp\.b4\.gap\.2\.", "decode_head.aspp.pool.normalization."),
    (r"^head\.aspp\.project\.0\.", "decode_head.aspp.project.convolution."),
    (r"^head\.aspp\.project\.1\.", "decode_head.aspp.project.normalization."),
    (r"^head\.block\.0\.", "decode_head.bottleneck.convolution."),
    (r"^head\.block\.1\.", "decode_head.bottleneck.normalization."),
    (r"^head\.block\.4\.", "decode_head.classifier."),
)
PSP_RENAME = (
    *((rf"^head\.psp\.conv{i + 1}\.0\.", f"decode_head.psp.convs.{i}.convolution.") for i in range(4)),
    *((rf"^head\.psp\.conv{i + 1}\.1\.", f"decode_head.psp.convs.{i}.normalization.") for i in range(4)),
    (r"^head\.block\.0\.", "decode_head.bottleneck.convolution."),
    (r"^head\.block\.1\.", "decode_head.bottleneck.normalization."),
    (r"^head\.classifier\.", "decode_head.classifier."),
)
UPERNET_RENAME = (
    (r"^head\.ppm_conv\.(\d)\.0\.", r"decode_head.psp.convs.\1.convolution."),
    (r"^head\.ppm_conv\.(\d)\.1\.", r"decode_head.psp.convs.\1.normalization."),
    (r"^head\.ppm_last_conv\.0\.", "decode_head.bottleneck.convolution."),
    (r"^head\.ppm_last_conv\.1\.", "decode_head.bottleneck.normalization."),
    (r"^head\.fpn_in\.(\d)\.0\.", r"decode_head.lateral_convs.\1.convolution."),
    (r"^head\.fpn_in\.(\d)\.1\.", r"decode_head.lateral_convs.\1.normalization."),
    (r"^head\.fpn_out\.(\d)\.0\.0\.", r"decode_head.fpn_convs.\1.convolution."),
    (r"^head\.fpn_out\.(\d)\.0\.1\.", r"decode_head.fpn_convs.\1.normalization."),
    (r"^head\.conv_last\.0\.0\.", "decode_head.fpn_bottleneck.convolution."),
    (r"^head\.conv_last\.0\.1\.", "decode_head.fpn_bottleneck.normalization."),
    (r"^head\.conv_last\.1\.", "decode_head.classifier."),
)


def _auxiliary(state_dict: StateDict) -> dict[str, Any]:
    """The networks on a ResNet have an auxiliary head, those on a mobile backbone none."""
    if not any(key.startswith("auxlayer.") for key in state_dict):
        return {"use_auxiliary_head": False}
    return {"use_auxiliary_head": True, "auxiliary_hidden_size": state_dict["auxlayer.block.0.weight"].shape[0]}


def _deeplabv3(state_dict: StateDict) -> dict[str, Any]:
    num_labels, width = state_dict["head.block.4.weight"].shape[:2]
    return {"num_labels": num_labels, "hidden_size": width, **_auxiliary(state_dict)}


def _psp(state_dict: StateDict) -> dict[str, Any]:
    num_labels, width = state_dict["head.classifier.weight"].shape[:2]
    pool_width = state_dict["head.psp.conv1.0.weight"].shape[0]
    return {
        "num_labels": num_labels,
        "hidden_size": width,
        "pool_hidden_size": pool_width,
        **_auxiliary(state_dict),
    }


def _upernet(state_dict: StateDict) -> dict[str, Any]:
    num_labels, width = state_dict["head.conv_last.1.weight"].shape[:2]
    pool_width = state_dict["head.ppm_conv.0.0.weight"].shape[0]
    return {
        "num_labels": num_labels,
        "hidden_size": width,
        "pool_hidden_size": pool_width,
        **_auxiliary(state_dict),
    }


DEEPLABV3 = Part("DeepLabV3", r"^head\.aspp\.b0\.0\.weight$", DEEPLABV3_RENAME + AUXILIARY, _deeplabv3)
PSP = Part("PSPNet", r"^head\.psp\.conv1\.0\.weight$", PSP_RENAME + AUXILIARY, _psp)
UPERNET = Part("UperNet", r"^head\.ppm_conv\.0\.0\.weight$", UPERNET_RENAME + AUXILIARY, _upernet)


def _family(backbone: Part, head: Part, config_class: type) -> Family:
    name = f"CIRKD / CSKD {head.name} on {backbone.name}"
    return compose(name, backbone, head, config_class, checked="vectors of the original code, no released file")


FAMILIES: tuple[Family, ...] = (
    *(_family(backbone, DEEPLABV3, DeepLabV3Config) for backbone in BACKBONES),
    *(_family(backbone, PSP, PSPNetConfig) for backbone in BACKBONES),
    _family(RESNET, UPERNET, UperNetConfig),
)
