"""The mobile backbones of CIRKD and CSKD: MobileNetV2 in two layouts of names, MobileNetV3, MobileViT."""

import re

from hf_segkd.conversion.family import Part, StateDict
from hf_segkd.models.mobilenetv2 import STAGES, MobileNetV2Config
from hf_segkd.models.mobilenetv3 import BLOCKS, MobileNetV3Config
from hf_segkd.models.mobilevit import MobileViTConfig

_LAYERS = ("expand_1x1", "conv_3x3", "reduce_1x1")
_MODULES = (("conv", "convolution"), ("bn", "normalization"))


def _mobilenetv2_rename() -> tuple[tuple[str, str], ...]:
    """Convolution and norm of a layer are neighbors in the original's sequences, an activation follows them."""
    rows = [(r"0\.", "conv_stem.first_conv", 0)]
    rows += [(r"1\.conv\.", f"conv_stem.{layer}", 3 * index) for index, layer in enumerate(_LAYERS[1:])]
    for block in range(sum(depth for _, depth, *_ in STAGES)):
        rows += [(rf"{block + 2}\.conv\.", f"layer.{block}.{layer}", 3 * i) for i, layer in enumerate(_LAYERS)]
    return tuple(
        (rf"^pretrained\.net\.features\.{original}{index + offset}\.", f"backbone.{target}.{module}.")
        for original, target, index in rows
        for offset, (_, module) in enumerate(_MODULES)
    )


def _ssseg_rename() -> tuple[tuple[str, str], ...]:
    """The original counts blocks within a stage, ours are counted through."""
    rows = [(r"conv1\.", "conv_stem.first_conv")]
    rows += [(rf"layer1\.0\.conv\.{index}\.", f"conv_stem.{layer}") for index, layer in enumerate(_LAYERS[1:])]
    blocks = [(stage, index) for stage, row in enumerate(STAGES, start=2) for index in range(row[1])]
    for block, (stage, index) in enumerate(blocks):
        rows += [(rf"layer{stage}\.{index}\.conv\.{i}\.", f"layer.{block}.{name}") for i, name in enumerate(_LAYERS)]
    return tuple(
        (rf"^pretrained\.{original}{name}\.", f"backbone.{target}.{module}.")
        for original, target in rows
        for name, module in _MODULES
    )


def _mobilenetv3_rename() -> tuple[tuple[str, str], ...]:
    """Layer 0 is the stem, the last one the head; which one is last depends on the variant."""
    last = "|".join(str(len(blocks) + 1) for blocks in BLOCKS.values())
    rows = [(r"layer0\.", "conv_stem"), (rf"layer(?:{last})\.", "conv_head")]
    layers = (("expand_conv", "expand_1x1"), ("depthwise_conv", "conv_dw"), ("linear_conv", "reduce_1x1"))
    blocks = range(max(len(blocks) for blocks in BLOCKS.values()))
    for block in blocks:
        rows += [(rf"layer{block + 1}\.{original}\.", f"layer.{block}.{name}") for original, name in layers]
    renamed = [
        (rf"^pretrained\.{original}{name}\.", f"backbone.{target}.{module}.")
        for original, target in rows
        for name, module in _MODULES
    ]
    for block in blocks:
        squeeze = f"backbone.layer.{block}.squeeze_excite"
        renamed.append((rf"^pretrained\.layer{block + 1}\.se\.conv1\.conv\.", f"{squeeze}.reduce."))
        renamed.append((rf"^pretrained\.layer{block + 1}\.se\.conv2\.conv\.", f"{squeeze}.expand."))
    return tuple(renamed)


def _mobilevit_rename() -> tuple[tuple[str, str], ...]:
    rows = [(r"stem\.", "conv_stem"), (r"conv_1x1_exp\.", "conv_1x1_exp")]
    for index, layer in enumerate(_LAYERS):
        rows.append((rf"layers\.([01])\.(\d+)\.conv\.{index}\.", rf"encoder.layer.\1.layer.\2.{layer}"))
        rows.append((rf"layers\.([234])\.0\.conv\.{index}\.", rf"encoder.layer.\1.downsampling_layer.{layer}"))
    layers = {"local_rep.0": "conv_kxk", "local_rep.1": "conv_1x1", "conv_proj": "conv_projection"}
    for original, layer in (layers | {"conv_fusion": "fusion"}).items():
        rows.append((rf"layers\.([234])\.1\.{re.escape(original)}\.", rf"encoder.layer.\1.{layer}"))
    renamed = [
        (rf"^pretrained\.{original}{name}\.", f"backbone.{target}.{module}.")
        for original, target in rows
        for name, module in _MODULES
    ]
    # The norm after the transformer is the last member of its sequence, whatever the depth.
    sequence, ours = r"^pretrained\.layers\.([234])\.1\.global_rep\.", r"backbone.encoder.layer.\1."
    renamed.append((rf"{sequence}\d+\.(weight|bias)$", rf"{ours}layernorm.\2"))
    inner = (
        (r"ln1\.", "layernorm_before."),
        (r"ln2\.", "layernorm_after."),
        (r"attn\.attn\.in_proj_", "attention.attention.qkv."),
        (r"attn\.attn\.out_proj\.", "attention.output.dense."),
        (r"ffn\.layers\.0\.0\.", "intermediate.dense."),
        (r"ffn\.layers\.1\.", "output.dense."),
    )
    renamed += [(rf"{sequence}(\d+)\.{original}", rf"{ours}transformer.layer.\2.{name}") for original, name in inner]
    return tuple(renamed)


def split_qkv(weights: StateDict) -> StateDict:
    """MobileViT's query, key and value are one tensor in the originals."""
    split = {}
    for key, value in weights.items():
        if ".attention.attention.qkv." not in key:
            split[key] = value
            continue
        for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
            split[key.replace(".qkv.", f".{name}.")] = part
    return split


def _mobilenetv3_config(state_dict: StateDict) -> MobileNetV3Config:
    lasts = {variant: f"pretrained.layer{len(blocks) + 1}.conv.weight" for variant, blocks in BLOCKS.items()}
    return MobileNetV3Config(variant="small" if lasts["small"] in state_dict else "large")


def _mobilevit_config(state_dict: StateDict) -> MobileViTConfig:
    """The number of heads leaves no trace in the shapes: it is the published one."""
    channels = [state_dict[f"pretrained.layers.{stage}.0.conv.2.conv.weight"].shape[0] for stage in range(5)]
    sizes = [state_dict[f"pretrained.layers.{stage}.1.local_rep.1.conv.weight"].shape[0] for stage in (2, 3, 4)]
    depths = [
        sum(
            re.fullmatch(rf"pretrained\.layers\.{stage}\.1\.global_rep\.\d+\.ln1\.weight", key) is not None
            for key in state_dict
        )
        for stage in (2, 3, 4)
    ]
    expanded, stem = state_dict["pretrained.layers.0.0.conv.0.conv.weight"].shape[:2]
    return MobileViTConfig(
        hidden_sizes=channels, transformer_sizes=sizes, depths=depths, expand_ratio=expanded // stem
    )


MOBILENETV2 = Part(
    name="MobileNetV2",
    signature=r"^pretrained\.net\.features\.0\.0\.weight$",
    rename=_mobilenetv2_rename(),
    config=lambda state_dict: MobileNetV2Config(),
    input_convolution="backbone.conv_stem.first_conv.convolution.weight",
)
MOBILENETV2_SSSEG = Part(
    name="MobileNetV2 (ssseg)",
    signature=r"^pretrained\.conv1\.conv\.weight$",
    rename=_ssseg_rename(),
    config=lambda state_dict: MobileNetV2Config(dilate_first_block_only=True),
    input_convolution="backbone.conv_stem.first_conv.convolution.weight",
)
MOBILENETV3 = Part(
    name="MobileNetV3",
    signature=r"^pretrained\.layer0\.conv\.weight$",
    rename=_mobilenetv3_rename(),
    config=_mobilenetv3_config,
    input_convolution="backbone.conv_stem.convolution.weight",
)
MOBILEVIT = Part(
    name="MobileViT",
    signature=r"^pretrained\.stem\.conv\.weight$",
    rename=_mobilevit_rename(),
    config=_mobilevit_config,
    input_convolution="backbone.conv_stem.convolution.weight",
    operations=(split_qkv,),
)
BACKBONES = (MOBILENETV2, MOBILENETV2_SSSEG, MOBILENETV3, MOBILEVIT)
