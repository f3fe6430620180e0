"""The command lines: quick to answer --help, and flags that are the fields of dataclasses."""

import io
import json
import subprocess
import sys

import pytest

from helpers.commands import script
from helpers.paths import ROOT
from hf_segkd.commands import COMMANDS
from hf_segkd.console import readable_errors
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


@pytest.mark.parametrize(
    "command, argv, hint",
    [
        ("predict", ["model", "x.png", "-output_dir", "out"], "option -output_dir. Did you mean '--output_dir'?"),
        ("predict", ["model", "x.png", "--outptu-dir=out"], "option --outptu-dir. Did you mean '--output_dir'?"),
        ("evaluate", ["--model", "student"], "'models' is given without a flag: hf-segkd evaluate MODELS ..."),
        ("label", ["--modle", "student"], "'model' is given without a flag: hf-segkd label MODEL ..."),
    ],
)
def test_every_spelling_of_an_option_gets_the_closest(command, argv, hint, capsys):
    """One dash instead of two was "--output_dir is missing"; `--model` was said to mean `--mode`."""
    with pytest.raises(SystemExit):
        script(command).parser().parse_args(argv)
    assert hint in capsys.readouterr().err


def test_values_with_a_dash_are_no_options():
    """A negative number, or what follows `--`, is not misspelled."""
    parser = script("evaluate").parser()
    argv = ["--dataset", "folder", "--output_dir", "out", "--ignore_index", "-1"]
    assert parser.parse_args(["model", *argv]).ignore_index == -1
    assert parser.parse_args([*argv, "--", "--odd"]).models == ["--odd"]


class Stream(io.StringIO):
    """A file that says whether it is a terminal."""

    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.mark.parametrize(
    "terminal, variables, colored",
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_colors_are_for_terminals_alone(terminal, variables, colored, monkeypatch):
    """In a log file they are noise; NO_COLOR is how people who cannot read them say so (no-color.org)."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", Stream(terminal))
    with pytest.raises(SystemExit) as stop, readable_errors():
        raise ValueError("wrong")
    assert str(stop.value.code) == ("\033[1;31merror:\033[0m wrong" if colored else "error: wrong")
    with pytest.raises(SystemExit):
        script("evaluate").parser().parse_args(["--nonsense"])
    assert ("\033[1;31merror:" in sys.stderr.getvalue()) == colored and "error:" in sys.stderr.getvalue()
