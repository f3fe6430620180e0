"""Small students of every architecture, saved as they are released."""

from pathlib import Path
from typing import Any

import torch

from hf_segkd.loading.any_model import load_model
from hf_segkd.models import SegmentationImageProcessor

LABELS = {index: f"class {index}" for index in range(6)}
SWIN = {"model_type": "swin", "embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 3, 4]}
SEGFORMER = {
    "model_type": "segformer",
    "hidden_sizes": [8, 8, 8, 8],
    "num_attention_heads": [1, 1, 1, 1],
    "depths": [1, 1, 1, 1],
    "decoder_hidden_size": 8,
}
# Two for the tests of every day; the others differ in their backbones.
SMALL: dict[str, dict[str, Any]] = {
    "espnet": {"model_type": "espnet", "hidden_sizes": [5, 10, 10], "depths": [1, 1]},
    "pspnet_mobilenetv3": {"model_type": "pspnet", "backbone": "mobilenetv3_small", "hidden_size": 8},
}
STUDENTS: dict[str, dict[str, Any]] = SMALL | {
    "espnetv2": {"model_type": "espnetv2"},
    "deeplabv3_resnet": {"model_type": "deeplabv3", "backbone": "resnet18", "hidden_size": 8},
    "deeplabv3_mobilenetv2": {"model_type": "deeplabv3", "backbone": "mobilenetv2", "hidden_size": 8},
    "pspnet_efficientnet": {"model_type": "pspnet", "backbone": "efficientnet_lite0", "hidden_size": 8},
    "upernet_mobilevit": {"model_type": "upernet", "backbone": "mobilevit_xxs", "hidden_size": 8},
    "upernet_swin": {"model_type": "upernet", "backbone": SWIN, "hidden_size": 8},
    "segformer_bgr": SEGFORMER,
}


def save_students(folder: Path, specs: dict[str, dict[str, Any]]) -> None:
    """Save each student to a folder of its name, and beside it what it answers to the pixels of load_released.py."""
    pixel_values = torch.linspace(-2, 2, 3 * 64 * 96).reshape(1, 3, 64, 96)
    for name, spec in specs.items():
        torch.manual_seed(0)
        model, processor = load_model(spec, id2label=LABELS)
        if name.endswith("bgr"):  # transformers has no equal of it
            processor = SegmentationImageProcessor(do_flip_channel_order=True)
        model.eval().save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        with torch.no_grad():
            torch.save(model(pixel_values=pixel_values).logits, folder / f"{name}.pt")
