"""Where the golden vectors lie: `HF_SEGKD_GOLDEN` names another folder with the layout of `tests/golden`."""

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType

from helpers.paths import TESTS

OWN = TESTS / "golden"
FOLDER = Path(os.environ.get("HF_SEGKD_GOLDEN", OWN)).resolve()
LOSSES, MODELS, ESPNETV2 = FOLDER / "losses", FOLDER / "models", FOLDER / "espnetv2"


def loss_cases() -> list[dict]:
    """All cases of the manifest."""
    return json.loads((LOSSES / "manifest.json").read_text())["cases"]


def rule(name: str) -> ModuleType:
    """A script that makes what is stored as a formula: the folder's own, or ours where it has none."""
    path = next(path for path in (FOLDER / name, OWN / name) if path.is_file())
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
