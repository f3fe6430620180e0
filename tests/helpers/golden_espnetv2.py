"""Golden vectors of ESPNetv2 and of MobileNetV2, whose weights are the released files beside the repository."""

import json

import pytest
import torch
from safetensors.torch import load_file

from helpers import golden_folder
from helpers.paths import SHARED

CHECKPOINTS = SHARED / "checkpoints"
golden_image = golden_folder.rule("espnetv2/golden_image.py")


def cases() -> dict[str, dict]:
    """Entry of each released file, by name; held-out sets may lie in a folder of their own inside."""
    found = {}
    for manifest in sorted(golden_folder.ESPNETV2.rglob("manifest.json")):
        for name, case in json.loads(manifest.read_text())["vectors"].items():
            found[f"{manifest.parent.name}/{name}"] = case | {"path": manifest.with_name(f"{name}.safetensors")}
    return found


def released(name: str):
    """A released file, or skip the test."""
    path = CHECKPOINTS / name
    if not path.is_file():
        pytest.skip(f"needs the released file beside the repository: ../shared/checkpoints/{name}")
    return path


def image(case: dict) -> torch.Tensor:
    """uint8 RGB (3, H, W)."""
    return torch.from_numpy(golden_image.image(case["salt"], *case["input"][1:]))


def outputs(case: dict) -> dict[str, torch.Tensor]:
    return load_file(case["path"])


def sample(tensor: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(golden_image.sample(tensor.detach().flatten().numpy()))
