"""PSPNet of Structured Knowledge Distillation and of CWD (TorchDistiller), whose norm is InPlaceABN."""

from typing import Any

from hf_segkd.conversion.family import Family, Part, StateDict, compose
from hf_segkd.conversion.resnet import resnet
from hf_segkd.models.pspnet import PSPNetConfig

RESNET = resnet(prefix="", first_dilation="full", ceil_mode=True)

# Older teachers hold the pyramid and the classifier in one sequence, head.0 and head.1.
RENAME = (
    (r"^(?:pspmodule|head\.0)\.stages\.(\d)\.1\.", r"decode_head.psp.convs.\1.convolution."),
    (r"^(?:pspmodule|head\.0)\.stages\.(\d)\.2\.", r"decode_head.psp.convs.\1.normalization."),
    (r"^(?:pspmodule|head\.0)\.bottleneck\.0\.", "decode_head.bottleneck.convolution."),
    (r"^(?:pspmodule|head\.0)\.bottleneck\.1\.", "decode_head.bottleneck.normalization."),
    (r"^head\.(?:1\.)?(weight|bias)$", r"decode_head.classifier.\1"),
    (r"^dsn\.0\.", "auxiliary_head.conv.convolution."),
    (r"^dsn\.1\.", "auxiliary_head.conv.normalization."),
    (r"^dsn\.3\.", "auxiliary_head.classifier."),
)


def _config(state_dict: StateDict) -> dict[str, Any]:
    classifier = "head.1.weight" if "head.1.weight" in state_dict else "head.weight"
    pyramid = "head.0" if "head.0.stages.0.1.weight" in state_dict else "pspmodule"
    num_labels, width = state_dict[classifier].shape[:2]
    return {
        "num_labels": num_labels,
        "hidden_size": width,
        "pool_hidden_size": state_dict[f"{pyramid}.stages.0.1.weight"].shape[0],
        "auxiliary_hidden_size": state_dict["dsn.0.weight"].shape[0],
    }


def fold_inplace_abn(weights: StateDict) -> StateDict:
    """InPlaceABN scales by |weight| + 1e-5, batch norm by weight."""
    scales = {key: value.abs() + 1e-5 for key, value in weights.items() if key.endswith(".normalization.weight")}
    return weights | scales


PSP = Part(
    name="PSPNet",
    signature=r"^(pspmodule|head\.0)\.stages\.0\.1\.weight$",
    rename=RENAME,
    config=_config,
    operations=(fold_inplace_abn,),
)

FAMILY: Family = compose(
    "Structured KD / CWD PSPNet on ResNet",
    RESNET,
    PSP,
    PSPNetConfig,
    checked="vectors of the original code, no released file",
    input_first=False,
    activation_slope=0.01,
    spatial_dropout=True,
    use_auxiliary_head=True,
    auxiliary_conv_bias=True,
)
