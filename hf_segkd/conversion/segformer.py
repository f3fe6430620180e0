"""SegFormer as released by CIRKD: MiT and its head, to transformers' own class and names."""

import re
from functools import cache

import torch
from transformers import SegformerConfig, SegformerModel

from hf_segkd.conversion.family import RGB_BYTES, Family, StateDict

STAGES = range(1, 5)
INPUT = "segformer.stages.0.patch_embeddings.proj.weight"
FUSE_BIAS = "decode_head.linear_fuse.bias"
FUSE_MEAN = "decode_head.batch_norm.running_mean"
_BLOCK = (
    (r"norm1\.", "layernorm_before."),
    (r"norm2\.", "layernorm_after."),
    (r"attn\.q\.", "attention.q_proj."),
    (r"attn\.kv\.", "attention.kv."),
    (r"attn\.proj\.", "attention.o_proj."),
    (r"attn\.sr\.", "attention.sequence_reduction.sequence_reduction."),
    (r"attn\.norm\.", "attention.sequence_reduction.layer_norm."),
    (r"mlp\.(fc1|fc2|dwconv\.dwconv)\.", r"mlp.\2."),
)
# From today's names to those of transformers before 5.10, which a stage's number follows.
_BEFORE_5_10 = (
    (r"\bstages\.(\d)\.patch_embeddings\.", r"encoder.patch_embeddings.\1."),
    (r"\bstages\.(\d)\.layer_norm\.", r"encoder.layer_norm.\1."),
    (r"\bstages\.(\d)\.blocks\.(\d+)\.", r"encoder.block.\1.\2."),
    (r"\.layernorm_before\.", ".layer_norm_1."),
    (r"\.layernorm_after\.", ".layer_norm_2."),
    (r"\.q_proj\.", ".self.query."),
    (r"\.k_proj\.", ".self.key."),
    (r"\.v_proj\.", ".self.value."),
    (r"\.o_proj\.", ".output.dense."),
    (r"\.sequence_reduction\.sequence_reduction\.", ".self.sr."),
    (r"\.sequence_reduction\.layer_norm\.", ".self.layer_norm."),
    (r"\.mlp\.fc([12])\.", r".mlp.dense\1."),
    (r"\.linear_projections\.", ".linear_c."),
)


def _stage(number: int) -> tuple[tuple[str, str], ...]:
    stage, block = f"segformer.stages.{number - 1}", rf"^block{number}\.(\d+)\."
    return (
        (rf"^patch_embed{number}\.proj\.", f"{stage}.patch_embeddings.proj."),
        (rf"^patch_embed{number}\.norm\.", f"{stage}.patch_embeddings.layer_norm."),
        (rf"^norm{number}\.", f"{stage}.layer_norm."),
        (rf"^linear_c{number}\.proj\.", f"decode_head.linear_projections.{number - 1}.proj."),
        *((block + original, rf"{stage}.blocks.\1.{name}") for original, name in _BLOCK),
    )


RENAME = (
    *(pair for number in STAGES for pair in _stage(number)),
    (r"^linear_fuse\.0\.", "decode_head.linear_fuse."),
    (r"^linear_fuse\.1\.", "decode_head.batch_norm."),
    (r"^linear_pred\.", "decode_head.classifier."),
)


def config(state_dict: StateDict) -> SegformerConfig:
    """The numbers of heads leave no trace in the shapes: they are those of every MiT.

    `align_corners` is no field of transformers', but is kept in config.json; this library upsamples by it.
    """
    patches = [state_dict[f"patch_embed{number}.proj.weight"].shape for number in STAGES]
    blocks = [{match[1] for key in state_dict if (match := re.match(rf"block{n}\.(\d+)\.", key))} for n in STAGES]
    reductions = [state_dict.get(f"block{number}.0.attn.sr.weight") for number in STAGES]
    expanded = [state_dict[f"block{number}.0.mlp.fc1.weight"].shape for number in STAGES]
    return SegformerConfig(
        num_labels=state_dict["linear_pred.weight"].shape[0],
        hidden_sizes=[shape[0] for shape in patches],
        patch_sizes=[shape[-1] for shape in patches],
        depths=[len(numbers) for numbers in blocks],
        sr_ratios=[1 if weight is None else weight.shape[-1] for weight in reductions],
        mlp_ratios=[width // channels for width, channels in expanded],
        decoder_hidden_size=state_dict["linear_fuse.0.bias"].shape[0],
        classifier_dropout_prob=0.0,
        align_corners=True,
    )


def split_kv(weights: StateDict) -> StateDict:
    """Key and value are one tensor in the originals."""
    split = {}
    for key, value in weights.items():
        if ".attention.kv." not in key:
            split[key] = value
            continue
        for name, part in zip(("k_proj", "v_proj"), value.chunk(2), strict=True):
            split[key.replace(".kv.", f".{name}.")] = part
    return split


def fold_fuse_bias(weights: StateDict) -> StateDict:
    """transformers' fusing convolution has no bias; the norm after it subtracts its mean, so the mean takes it up."""
    bias = weights[FUSE_BIAS]
    folded = {key: value - bias if key == FUSE_MEAN else value for key, value in weights.items()}
    return {key: value for key, value in folded.items() if key != FUSE_BIAS}


def flip_input(weights: StateDict) -> StateDict:
    """From BGR to RGB."""
    return weights | {INPUT: weights[INPUT].flip(1)}


def names_of_release(weights: StateDict) -> StateDict:
    """Today's names, or the older ones where transformers is older."""
    if _has_todays_names():
        return weights
    for name, older in _BEFORE_5_10:
        weights = {re.sub(name, older, key): value for key, value in weights.items()}
    return weights


@cache
def _has_todays_names() -> bool:
    with torch.device("meta"):
        return hasattr(SegformerModel(SegformerConfig()), "stages")


FAMILY = Family(
    name="SegFormer",
    signature=r"^linear_pred\.weight$",
    rename=RENAME,
    config=config,
    operations=(split_kv, fold_fuse_bias, flip_input, names_of_release),
    processor=RGB_BYTES,
    checked="vectors of the original code, no released file",
)
