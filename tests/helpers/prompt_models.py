"""Tiny CLIPSeg and SAM 3 with random weights, and a tokenizer of a few words."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, PreTrainedTokenizerFast, Sam3Config, Sam3Model

from hf_segkd.models import SegmentationImageProcessor

WORDS = ["<pad>", "<unk>", "road", "street", "car", "crack", "rust", "</s>"]
PROMPTS = {"crack": ["crack", "road"], "rust": "rust"}
TEXT = {
    **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{
        "vocab_size": len(WORDS),
        "max_position_embeddings": 8,
        "eos_token_id": 7,
        "bos_token_id": 1,
        "pad_token_id": 0,
    },
}


def clipseg() -> CLIPSegForImageSegmentation:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPSegForImageSegmentation(
        CLIPSegConfig(
            text_config=TEXT,
            vision_config={**vision, "image_size": 32, "patch_size": 8},
            projection_dim=16,
            **{"extract_layers": [0, 1], "reduce_dim": 8, "decoder_num_attention_heads": 2},
            **{"decoder_intermediate_size": 16},
        )
    )


def sam3() -> Sam3Model:
    backbone = {
        "model_type": "sam3_vit_model",
        **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{
            "image_size": 56,
            "patch_size": 14,
            "window_size": 2,
            "global_attn_indexes": [1],
            "pretrain_image_size": 56,
        },
    }
    part = {"hidden_size": 16, "num_attention_heads": 2}
    layers = {**part, "intermediate_size": 16, "num_layers": 1}
    return Sam3Model(
        Sam3Config(
            vision_config={
                **{"backbone_config": backbone, "fpn_hidden_size": 16},
                "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            },
            text_config={**TEXT, "projection_dim": 16},
            geometry_encoder_config=layers,
            detr_encoder_config=layers,
            detr_decoder_config={**layers, "num_queries": 5},
            mask_decoder_config=part,
        )
    )


KINDS = {"clipseg": clipseg, "sam3": sam3}


def save(kind: str, folder) -> str:
    """A folder of the model with its tokenizer and processor."""
    torch.manual_seed(0)
    KINDS[kind]().save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 7)])
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=8, **special)
    tokenizer.save_pretrained(folder)
    SegmentationImageProcessor(image_mean=(0.1, 0.2, 0.3)).save_pretrained(folder)
    return str(folder)
