"""Golden vectors of the original networks: their weights by rule, their inputs and outputs."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers import golden_folder

OWN, FOLDER = golden_folder.OWN / "models", golden_folder.MODELS
golden_rule = golden_folder.rule("models/golden_rule.py")


def names() -> list[str]:
    """Names of the networks in the folder; a network that no family recognizes is among them, and fails."""
    return [path.stem for path in sorted(FOLDER.glob("*.json")) if "state_dict" in json.loads(path.read_text())]


def parameters() -> list:
    """The networks as test parameters; the biggest, and one more with other classes, run with `-m golden` only."""
    seen, found = set(), []
    for name in names():
        case = read(name)
        layers = tuple((key, *shape[1:]) for key, shape, _ in case["state_dict"])
        left_out = layers in seen or case["params"] > 59_000_000
        found.append(pytest.param(name, marks=[pytest.mark.slow] if left_out else []))
        seen.add(layers)
    return found


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
