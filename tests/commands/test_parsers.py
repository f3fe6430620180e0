"""The command lines: quick to answer --help, and flags that are the fields of dataclasses."""

import json
import subprocess
import sys

import pytest

from helpers.commands import script
from helpers.paths import ROOT
from hf_segkd.commands import COMMANDS
from hf_segkd.evaluation.settings import InferenceProtocol

LIGHT = """
import importlib, json, sys
loaded = {}
for name in sys.argv[1:]:
    importlib.import_module(f"hf_segkd.commands.{name}").parser().format_help()
    loaded[name] = [x for x in ("torch", "transformers", "datasets", "accelerate", "onnx") if x in sys.modules]
print(json.dumps(loaded))
"""


def test_help_needs_none_of_the_libraries_that_do_the_work():
    """Importing them takes seconds: nobody asks a second time what a flag does."""
    command = [sys.executable, "-c", LIGHT, *COMMANDS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) == {name: [] for name in COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_says_what_it_does(name):
    """`--help` is the manual; a flag without a sentence can only be tried."""
    silent = [action.option_strings or action.dest for action in script(name).parser()._actions if not action.help]
    assert silent == []


def test_protocol_flags_make_the_protocol():
    """A flag that does not reach the protocol scores another one under its name."""
    argv = ["model", "--dataset", "camvid", "--output_dir", "out", "--mode", "slide", "--crop-size", "64", "96"]
    argv += ["--stride", "32", "48", "--scales", "0.75", "1", "--flip", "--average", "probabilities"]
    arguments = script("evaluate").parser().parse_args([*argv, "--no-align_corners"])
    expected = InferenceProtocol("slide", (64, 96), (32, 48), (0.75, 1.0), True, "probabilities", False)
    assert InferenceProtocol.from_arguments(arguments) == expected
    without = script("evaluate").parser().parse_args(argv[:5])
    assert InferenceProtocol.from_arguments(without) == InferenceProtocol()


def test_misspelled_required_flag_gets_the_closest(capsys):
    """argparse alone says that --dataset is missing, to somebody who sees it before them."""
    with pytest.raises(SystemExit):
        script("evaluate").parser().parse_args(["model", "--datset", "camvid", "--output_dir", "out"])
    assert "unknown option --datset. Did you mean '--dataset'?" in capsys.readouterr().err
