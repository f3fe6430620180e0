"""Small random teachers of transformers, one of each kind, and a trainer for them."""

from importlib.util import find_spec
from string import ascii_lowercase

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation as Semantic
from transformers import AutoModelForUniversalSegmentation as Universal
from transformers import (
    BeitConfig,
    CLIPTokenizer,
    Data2VecVisionConfig,
    DPTConfig,
    EomtConfig,
    Mask2FormerConfig,
    MaskFormerConfig,
    MobileNetV2Config,
    MobileViTConfig,
    MobileViTV2Config,
    OneFormerConfig,
    OneFormerProcessor,
    SegformerConfig,
    SwinConfig,
    UperNetConfig,
)

from helpers.native_names import pil_processor
from helpers.tiny import LABELS, TinyScenes
from hf_segkd.loading.any_model import load_model
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.trainer import DistillationTrainer

STUDENT = {"model_type": "pspnet", "backbone": "mobilenetv3_small", "hidden_size": 8}
needs_scipy = pytest.mark.skipif(find_spec("scipy") is None, reason="transformers' universal models need scipy")
STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
SWIN = {"embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 1, 2, 2], "window_size": 4, **STAGES}
VIT = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 64, "patch_size": 16}
UPER = {**VIT, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "pool_scales": [1, 2], "auxiliary_channels": 8}
WIDTHS = {"hidden_dim": 32, "mask_feature_size": 32, "feature_size": 32, "num_attention_heads": 2, "num_queries": 5}
LAYERS = {"encoder_layers": 1, "decoder_layers": 2, "encoder_feedforward_dim": 16, "dim_feedforward": 16}
DETR = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}

CONFIGS = {
    "segformer": lambda: SegformerConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=12
    ),
    "upernet": lambda: UperNetConfig(
        backbone_config=SwinConfig(**SWIN), hidden_size=16, auxiliary_channels=8, pool_scales=[1, 2]
    ),
    "beit": lambda: BeitConfig(**UPER, use_relative_position_bias=True),
    "data2vec-vision": lambda: Data2VecVisionConfig(**UPER, use_relative_position_bias=True),
    "dpt": lambda: DPTConfig(
        **VIT,
        num_hidden_layers=4,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=12,
    ),
    "mobilenet_v2": lambda: MobileNetV2Config(depth_multiplier=0.25, output_stride=8),
    "mobilevit": lambda: MobileViTConfig(
        hidden_sizes=[8, 8, 8], neck_hidden_sizes=[4, 4, 4, 4, 4, 4, 16], aspp_out_channels=8
    ),
    "mobilevitv2": lambda: MobileViTV2Config(width_multiplier=0.1, base_attn_unit_dims=[8, 8, 8], aspp_out_channels=8),
    "mask2former": lambda: Mask2FormerConfig(backbone_config=SwinConfig(**SWIN), **WIDTHS, **LAYERS),
    "maskformer": lambda: MaskFormerConfig(
        backbone_config=SwinConfig(**SWIN),
        decoder_config={"model_type": "detr", **DETR, "num_queries": 5},
        fpn_feature_size=32,
        mask_feature_size=32,
    ),
    "oneformer": lambda: OneFormerConfig(
        **{
            "backbone_config": SwinConfig(**SWIN),
            "conv_dim": 32,
            "mask_dim": 32,
            "hidden_dim": 32,
            "task_seq_len": 40,
        },
        **{"num_attention_heads": 2, "num_queries": 5, **LAYERS},
    ),
    "eomt": lambda: EomtConfig(**VIT, num_hidden_layers=3, num_blocks=1, num_upscale_blocks=1, num_queries=5),
}
UNIVERSAL = ("mask2former", "maskformer", "oneformer", "eomt")
SEMANTIC = tuple(name for name in CONFIGS if name not in UNIVERSAL)
ALL = [pytest.param(name, marks=needs_scipy) if name in UNIVERSAL else name for name in CONFIGS]


def native(name, id2label):
    """A model of transformers as `from_config` makes it, not yet exposed."""
    torch.manual_seed(0)
    config = CONFIGS[name]()
    config.id2label, config.label2id = id2label, {label: index for index, label in id2label.items()}
    return (Universal if name in UNIVERSAL else Semantic).from_config(config).eval()


def saved(name, id2label, folder):
    """Folder of such a model; with OneFormer's processor and a tokenizer that spells."""
    native(name, id2label).save_pretrained(folder)
    if name == "oneformer":
        tokens = [*ascii_lowercase, *(f"{x}</w>" for x in ascii_lowercase), "<|startoftext|>", "<|endoftext|>"]
        tokenizer = CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])
        options = {"repo_path": None, "class_info_file": None, "image_mean": [0.1, 0.2, 0.3]}
        images = pil_processor("oneformer", "OneFormer")(**options)
        OneFormerProcessor(images, tokenizer, task_seq_length=40).save_pretrained(folder)
    return str(folder)


def trainer_for(folder, teacher, losses, own=None, **options):
    torch.manual_seed(1)
    student = load_model(STUDENT, id2label=LABELS)[0]
    args = DistillationConfig(
        losses=losses,
        **{"output_dir": str(folder), "use_cpu": True, "disable_tqdm": True, "max_steps": 1, "logging_steps": 1},
        **{"per_device_train_batch_size": 2, "learning_rate": 0.01, "load_best_model_at_end": False},
        **{"eval_strategy": "no", "save_strategy": "no"},
        **options,
    )
    return DistillationTrainer(student, teacher, args=args, losses=own, train_dataset=TinyScenes(size=64))
