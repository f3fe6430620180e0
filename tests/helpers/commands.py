"""Commands run in this process, on a recipe of a few seconds."""

import importlib
from types import SimpleNamespace

import pytest
import yaml

from helpers.tiny import RECIPE
from hf_segkd.commands import distill


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


def trained_here(command, **options):
    """What the command of a queue's run does, without a process of its own."""
    assert command[1:4] == ["-m", "hf_segkd", "distill"]
    distill.main(command[4:])
    return SimpleNamespace(returncode=0)
