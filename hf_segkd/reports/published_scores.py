"""What the authors of the library's networks report: mIoU in percent, alone -> with their method."""

from __future__ import annotations

# As docs/models.md has it, by the student's name: mIoU, then what was scored and by whom.
PUBLISHED_SCORES: dict[str, tuple[str, str]] = {
    "espnet": ("57.8 -> 65.1", "CamVid test, ESPNet's files"),
    "espnet-c": ("56.7 -> 64.1", "CamVid test, ESPNet's files"),
    "espnetv2-0.5": ("53.9", "Cityscapes val, EdgeNets"),
    "espnetv2-1.0": ("60.1", "Cityscapes val, EdgeNets"),
    "espnetv2-1.5": ("63.8", "Cityscapes val, EdgeNets"),
    "espnetv2-2.0": ("66.4", "Cityscapes val, EdgeNets"),
    "segformer-b0": ("75.58 -> 76.92", "Cityscapes val, CIRKD"),
    "deeplabv3-r18": ("73.56 -> 75.60", "Cityscapes test, CIRKDv2"),
    "deeplabv3-r101": ("78.30", "Cityscapes test, CIRKDv2"),
    "deeplabv3-mbv2": ("73.12 -> 75.42", "Cityscapes val, CIRKD"),
    "deeplabv3-mbv3-s": ("65.05 -> 67.62", "Cityscapes test, CIRKDv2"),
    "deeplabv3-mbv3-l": ("32.83 -> 36.14", "ADE20K, CIRKDv2"),
    "deeplabv3-mobilevit-xxs": ("66.24 -> 68.91", "Cityscapes test, CIRKDv2"),
    "pspnet-r18": ("72.55 -> 74.73", "Cityscapes val, CIRKD"),
    "pspnet-mbv3-s": ("62.78 -> 65.42", "Cityscapes test, CIRKDv2"),
    "pspnet-mbv3-l": ("33.63 -> 36.01", "ADE20K, CIRKDv2"),
    "pspnet-mobilevit-xxs": ("65.48 -> 68.45", "Cityscapes test, CIRKDv2"),
    "upernet-r18": ("68.90 -> 72.11", "Cityscapes test, CIRKDv2"),
}
