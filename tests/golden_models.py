"""Golden vectors of the original networks: their weights by rule, their inputs and outputs.

`HF_SEGKD_GOLDEN` names another folder with the same layout (`models/*.json`, `*.safetensors`).
"""

import hashlib
import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_segkd.conversion import FAMILIES

OWN = Path(__file__).resolve().parent / "golden" / "models"
FOLDER = Path(os.environ.get("HF_SEGKD_GOLDEN", OWN.parent)) / "models"

_spec = importlib.util.spec_from_file_location("golden_rule", OWN / "golden_rule.py")
golden_rule = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden_rule)


def implemented() -> list[str]:
    """Names of the networks whose checkpoints a family recognises."""
    networks = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
    manifests = {
        name: dict(key[:2] for key in case["state_dict"]) for name, case in networks.items() if "salt" in case
    }
    return [name for name, keys in manifests.items() if any(family.matches(keys) for family in FAMILIES)]


def parameters() -> list:
    """The networks as test parameters; the biggest, 4 s each, run with `-m golden` and `-m slow` only."""
    big = {name for name in implemented() if read(name)["params"] > 60_000_000}
    return [pytest.param(name, marks=[pytest.mark.slow] if name in big else []) for name in implemented()]


def read(name: str, folder: Path = FOLDER) -> dict:
    return json.loads((folder / f"{name}.json").read_text())


def outputs(name: str) -> dict[str, torch.Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


def original_state_dict(case: dict) -> dict[str, torch.Tensor]:
    arrays = {key: golden_rule.fill(case["salt"], key, shape, case["gain"]) for key, shape, _ in case["state_dict"]}
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays.values())).hexdigest()
    if digest != case["weights_sha256"]:
        raise ValueError(f"The weights of {case['name']} are not those of the golden vectors.")
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def image(salt: str, size: list[int]) -> torch.Tensor:
    return torch.from_numpy(golden_rule.image(salt, *size))


def sample(tensor: torch.Tensor, count: int = golden_rule.CAP) -> torch.Tensor:
    return torch.from_numpy(golden_rule.sample(tensor.detach().flatten().numpy(), count))
