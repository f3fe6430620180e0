"""`hf-segkd distill --help` shows what exists, and nothing else."""

import os
import subprocess
import sys
from dataclasses import MISSING, fields

import pytest
from transformers import TrainingArguments

from hf_segkd.commands import distill
from hf_segkd.losses import LOSSES
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.options import DistillationArguments, ScriptArguments, option_groups


def flags(text: str) -> set[str]:
    return {line.split()[0].removeprefix("--").rstrip(",") for line in text.splitlines() if line.startswith("  --")}


def test_help_shows_each_own_option_in_one_group():
    """An option that no group shows is one that nobody finds."""
    shown = [option.name for options in option_groups().values() for option in options]
    own = {option.name for option in (*fields(ScriptArguments), *fields(DistillationArguments))}
    added = {option.name for option in fields(DistillationConfig)} - {x.name for x in fields(TrainingArguments)}
    added -= {"activation_checkpointing"}  # transformers' own in newer releases
    assert len(shown) == len(set(shown)) and set(shown) == own and added <= own
    assert list(option_groups()) == ["data", "teacher", "student", "losses", "run"]
    assert option_groups()["data"][0].name == "data"


def test_each_option_has_a_line_that_reads_alone():
    """ "Its module" and the like need the line before to be understood."""
    for options in option_groups().values():
        for option in options:
            text = option.metadata["help"]
            assert text[0].isupper() and not text.startswith("Its ") and len(text) > 15, option.name


def test_options_of_trainer_that_are_declared_again_keep_their_defaults():
    """Help would tell a default that the run does not use."""
    changed = {"eval_steps": 0.1, "save_steps": 0.1, "logging_steps": 50, "per_device_eval_batch_size": 1}
    theirs = {option.name: option.default for option in fields(TrainingArguments)}
    for option in fields(DistillationArguments):
        if option.name in theirs and option.default is not MISSING:
            assert option.default == changed.get(option.name, theirs[option.name]), option.name


def test_help_all_shows_every_option(capsys):
    """Trainer's other options work too and must be findable."""
    distill.main(["--help-all"])
    everything = flags(capsys.readouterr().out)
    assert {option.name for option in fields(DistillationConfig) if option.init} <= everything
    distill.main(["--help"])
    few = flags(capsys.readouterr().out)
    assert "losses" in few and "lr_scheduler_kwargs" not in few and few < everything


def test_help_names_the_losses_that_exist(capsys):
    """They are read from the source without torch, which the next change of that file could break."""
    assert distill.loss_names() == list(LOSSES)
    distill.main(["--help"])
    assert "af_dcd" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line, expected",
    [
        ("hf-segkd eval", "evaluate"),
        ("hf-segkd distill espn", "espnet_espnet-c"),
        ("hf-segkd distill --lear", "--learning_rate"),
    ],
)
def test_shell_completion(line, expected, tmp_path):
    """Names of recipes are long."""
    pytest.importorskip("argcomplete")
    answer = tmp_path / "answer"
    environment = {**os.environ, "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    environment |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_IFS": " "}
    subprocess.run([sys.executable, "-m", "hf_segkd"], env=environment, capture_output=True)
    assert expected in answer.read_text().split()
