"""ESPNetv2 as released by EdgeNets, for Cityscapes and Pascal VOC."""

import re

from dataset_builders.cityscapes import CLASSES as CITYSCAPES
from dataset_builders.voc_aug import CLASSES as VOC
from hf_segkd.conversion.family import Family, StateDict
from hf_segkd.models.espnetv2 import ESPNetv2Config

_LAYER = (("conv", "convolution"), ("bn", "normalization"), ("act", "activation"))
_SEQUENCE = (("0", "convolution"), ("1", "normalization"), ("2", "activation"))
_NORM = (("0", "normalization"), ("1", "activation"))
_BLOCK = (("proj_1x1", "reduce"), ("br_after_cat", "fuse"), ("conv_1x1_exp", "expand"))
# Class names by number of classes. Cityscapes' background was never a label: its score is driven down everywhere.
LABELS = {20: (*CITYSCAPES, "background"), 21: tuple(VOC)}


def _layer(original: str, target: str, names: tuple[tuple[str, str], ...] = _LAYER) -> list[tuple[str, str]]:
    return [(rf"^{original}\.{name}\.", f"{target}.{ours}.") for name, ours in names]


def _block(original: str, target: str, groups: int) -> list[tuple[str, str]]:
    """Rules of one dilated block, `groups` of whose original name appear in the target."""
    rules = [(rf"^{original}\.spp_dw\.(\d+)\.conv\.", rf"{target}.branches.\{groups + 1}.")]
    for name, ours in _BLOCK:
        rules += _layer(rf"{original}\.{name}", f"{target}.{ours}")
    return rules


def _encoder() -> list[tuple[str, str]]:
    rules = _layer(r"base_net\.level1", "encoder.stem")
    for stage, level in enumerate((2, 3, 4)):
        original, target = rf"base_net\.level{level}_0", f"encoder.stages.{stage}.downsample"
        rules += _block(rf"{original}\.eesp", f"{target}.block", groups=0)
        rules += _layer(rf"{original}\.inp_reinf\.([01])", rf"{target}.image.\1")
        rules.append((rf"^{original}\.act\.", f"{target}.activation."))
        original, target = rf"base_net\.level{level}\.(\d+)", rf"encoder.stages.{stage}.layers.\1"
        rules += _block(original, target, groups=1)
        rules.append((rf"^{original}\.module_act\.", f"{target}.activation."))
    return rules


def _decoder() -> list[tuple[str, str]]:
    rules = [(r"^bu_dec_l4\.merge_layer\.3\.", "decode_head.classifier.")]
    for index in range(4):
        original, target = f"bu_dec_l{index + 1}", f"decode_head.pyramids.{index}"
        rules += _layer(rf"{original}\.projection_layer\.cbr", f"{target}.reduce", _SEQUENCE)
        rules.append((rf"^{original}\.stages\.(\d+)\.", rf"{target}.branches.\1."))
        rules += _layer(rf"{original}\.merge_layer\.0\.br", f"{target}.fuse", _NORM)
        rules += _layer(rf"{original}\.merge_layer\.2\.cbr", f"{target}.merge", _SEQUENCE)
    for index in range(3):
        # The originals number the joins from 2, deepest first, and the pyramids from 1.
        pyramid, join = f"bu_dec_l{index + 1}", index + 2
        rules.append((rf"^{pyramid}\.merge_layer\.3\.", f"decode_head.pyramids.{index}.expand.convolution."))
        rules += _layer(rf"{pyramid}\.br\.br", f"decode_head.pyramids.{index}.expand", _NORM)
        rules.append((rf"^merge_enc_dec_l{join}\.wt_layer\.1\.", f"decode_head.laterals.{index}.gate."))
        body = f"decode_head.laterals.{index}.body"
        rules += _layer(rf"merge_enc_dec_l{join}\.expansion_layer\.cbr", body, _SEQUENCE)
        rules += _layer(f"bu_br_l{join}", f"decode_head.norms.{index}", _NORM)
    return rules


def config(state_dict: StateDict) -> ESPNetv2Config:
    """Width, depths, classes and their names from the shapes; 20 classes are Cityscapes', 21 Pascal VOC's."""
    num_labels = state_dict["bu_dec_l4.merge_layer.3.bias"].shape[0]
    depths = [
        len({match[1] for key in state_dict if (match := re.match(rf"base_net\.level{level}\.(\d+)\.", key))})
        for level in (3, 4)
    ]
    labels = LABELS.get(num_labels, [f"LABEL_{index}" for index in range(num_labels)])
    return ESPNetv2Config(
        width=state_dict["base_net.level2_0.act.weight"].shape[0] / 64,
        depths=depths,
        pyramid_size=state_dict["bu_dec_l1.projection_layer.cbr.0.weight"].shape[0],
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )


FAMILY = Family(
    name="ESPNetv2 (EdgeNets)",
    signature=r"^base_net\.level2_0\.eesp\.spp_dw\.0\.conv\.weight$",
    rename=(*_encoder(), *_decoder()),
    config=config,
    # An activation that the down-samplers have and never run.
    dropped=r"^base_net\.level[234]_0\.eesp\.module_act\.weight$",
    checked="vectors of the original code, 16 released files",
)
