"""Commands run in this process, on a recipe of a few seconds."""

import importlib

import pytest
import yaml

from helpers.tiny import TINY
from hf_segkd.commands import distill

RECIPE = {
    "dataset": "synthetic",
    "dataset_config": {"num_train": 8, "num_validation": 3, "num_test": 2, "height": 32, "width": 48},
    "student": TINY,
    "crop_size": [32, 32],
    "per_device_train_batch_size": 2,
    "max_steps": 4,
    "eval_steps": 2,
    "save_steps": 2,
    "logging_steps": 1,
    "use_cpu": True,
    "seed": 3,
}


def script(name: str):
    """The module of a command."""
    return importlib.import_module(f"hf_segkd.commands.{name}")


def recipe(folder, **changes) -> str:
    path = folder / "given.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes}, sort_keys=False))
    return str(path)


def refusal(argv) -> str:
    """The message with which `distill.py` refuses `argv` before training."""
    with pytest.raises(SystemExit) as stop:
        distill.main(argv)
    message = str(stop.value.code)
    assert message.startswith("error: ") and "Traceback" not in message
    return message
