"""The quickstart without its trainings: threads, the three runs, and what it says at the end."""

import json
import re
import shlex

import pytest
import torch

from hf_segkd.commands import distill, predict, prepare, quickstart
from hf_segkd.recipe import parse
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.options import ScriptArguments

SCORES = {"teacher": 0.55, "student_alone": 0.3, "student_distilled": 0.42}


@pytest.mark.parametrize(
    ("cores", "load", "threads"),
    [(2, 0.1, 2), (2, 0.8, 1), (2, 9.0, 1), (16, 2.2, 4), (4, 2.2, 2), (1, 0.0, 1)],
)
def test_threads_take_the_cores_that_others_leave_free(cores, load, threads):
    """Two threads on a core and a half wait for each other in every convolution: steps take many times longer."""
    assert quickstart.free_threads(cores, load) == threads


@pytest.fixture
def fake_runs(monkeypatch):
    """Runs that write their scores and train nothing; the argument lists they were given."""
    calls = []

    def run(argv):
        parse((ScriptArguments, DistillationConfig), argv)
        folder = quickstart.Path(argv[argv.index("--output_dir") + 1])
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({"mean_iou": SCORES[folder.name]}))
        (folder / "training_log.json").write_text("[]")
        calls.append(argv)

    monkeypatch.setattr(distill, "main", run)
    monkeypatch.setattr("hf_segkd.reports.run_folder.write_curves", lambda history, path: None)
    return calls


def test_a_busy_machine_gets_one_thread_and_a_line_that_says_so(tmp_path, fake_runs, monkeypatch, capsys):
    """A demo that takes an hour because a browser is open, without a word why, would be the last one."""
    threads = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(quickstart.os, "getloadavg", lambda: (64.0, 0.0, 0.0), raising=False)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    quickstart.main(["--output_dir", str(tmp_path)])
    assert threads == [1]
    assert re.search(r"^Threads: .*64\.0 other processes", capsys.readouterr().out, flags=re.MULTILINE)


def test_omp_num_threads_stands(tmp_path, fake_runs, monkeypatch):
    """Who sets it knows the machine better than a load average."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(torch, "set_num_threads", lambda number: pytest.fail("threads were changed"))
    quickstart.main(["--output_dir", str(tmp_path)])


def test_students_differ_in_the_teacher_and_in_nothing_else(tmp_path, fake_runs):
    """Other steps, networks or rates would be part of the gain."""
    quickstart.main(["--output_dir", str(tmp_path)])
    _, alone, distilled = (parse((ScriptArguments, DistillationConfig), argv)[1] for argv in fake_runs)
    assert alone.pop("dataset_config") == {"num_train": 8} and distilled.pop("dataset_config") == {"num_labeled": 8}
    assert distilled.pop("teacher") == str(tmp_path / "seed0" / "teacher")
    assert alone.pop("losses")["task"] == distilled.pop("losses")["task"]
    assert alone.pop("output_dir") != distilled.pop("output_dir")
    assert alone == distilled


def test_last_lines_say_what_was_shown_and_commands_that_parse(tmp_path, fake_runs, capsys, monkeypatch):
    """The next thing a newcomer types is copied from here."""
    quickstart.main(["--output_dir", str(tmp_path)])
    words = capsys.readouterr().out.rsplit("Shown in", 1)[1]
    assert all(number in words for number in ("30.0 %", "55.0 %", "42.0 %"))
    commands = [shlex.split(line) for line in words.replace("\\\n", " ").splitlines() if "  hf-segkd" in line]
    assert [words[1] for words in commands] == ["prepare", "distill", "distill", "predict"]
    for _, name, *argv in commands:
        if name == "distill":
            parse((ScriptArguments, DistillationConfig), argv)
        else:
            {"prepare": prepare, "predict": predict}[name].parser().parse_args(argv)
