"""Every command that a page shows is one that its reader can type."""

import argparse
import configparser
import contextlib
import os
import re
import runpy
import subprocess
import sys

import pytest
from accelerate.commands.launch import launch_command_parser

from helpers.page_folder import RUNNABLE, script_of, write_folder
from helpers.paths import ROOT
from hf_segkd import commands
from hf_segkd.commands import benchmark, distill, pretrain

PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
SHOWING = [page for page in PAGES if "```bash" in page.read_text(encoding="utf-8")]
ELSEWHERE = {"hf", "git", "npm"}  # programs of others
# Bash expands variables and functions; with no PATH, every program is "not found" and is written down instead of run.
RECORDER = r"""
PATH=/nowhere
source() { :; }
command_not_found_handle() { printf '%s\x1f' "$@"; printf '\x1e'; }
"""


class Parsed(Exception):
    """A parser accepted its command line."""


def test_the_pages_that_show_commands_are_found():
    """An empty list of pages would pass every test below."""
    assert {page.name for page in SHOWING} >= {"README.md", "your_own_data.md", "recipes.md"}


@pytest.mark.parametrize("page", SHOWING, ids=lambda page: page.name)
def test_every_command_of_a_page_parses(page, monkeypatch, capsys):
    """A flag that was renamed, or a recipe that was removed, would stop a newcomer at the first line they copy."""
    monkeypatch.chdir(ROOT)
    stop_after_parsing(monkeypatch)
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        for argv in programs(block):
            try:
                check(argv, monkeypatch)
            except SystemExit as stop:
                pytest.fail(f"{page.name}: {' '.join(argv)}\n{stop.code} {capsys.readouterr().err}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_file_named_in_a_sentence_exists(page):
    """`make X`, `hf-segkd X` or the path of a file in running text ages as a block does."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for name in re.findall(r"`hf-segkd ([a-z]+)", text):
        assert name in commands.COMMANDS, name
    for name in re.findall(r"`make ([a-z-]+)", text):
        assert name in make_targets(), name
    folders = "scripts|docs|dataset_builders|benchmarks|hf_segkd|tests"
    for path in re.findall(rf"`(?:python |accelerate launch )?((?:{folders})/[\w./-]+)", text):
        assert "NAME" in path or (ROOT / path).exists(), path


def programs(block: str) -> list[list[str]]:
    """The programs that a block of bash would start, each with its arguments."""
    done = subprocess.run(["/bin/bash", "-c", RECORDER + block], capture_output=True, text=True, cwd=ROOT)
    assert not done.stderr, f"{block}\n{done.stderr}"
    return [line.split("\x1f")[:-1] for line in done.stdout.split("\x1e")[:-1]]


def stop_after_parsing(monkeypatch) -> None:
    """Let argparse and the reader of recipes raise [`Parsed`] where they would hand over what they read."""

    def stopping(function):
        def stop(*args, **kwargs):
            function(*args, **kwargs)
            raise Parsed

        return stop

    parse_args = argparse.ArgumentParser.parse_args

    def to_the_end(function):
        """For functions that do nothing but parse: argparse is one of their steps."""

        def parse(*args, **kwargs):
            with monkeypatch.context() as patch:
                patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
                return stopping(function)(*args, **kwargs)

        return parse

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stopping(parse_args))
    for command in (distill, pretrain):
        monkeypatch.setattr(command, "parse", to_the_end(command.parse))
    monkeypatch.setattr(benchmark, "open_data", lambda recipes, *others: (recipes, None))
    monkeypatch.setattr(benchmark, "plan", to_the_end(benchmark.plan))
    monkeypatch.setattr(benchmark, "report", lambda folder: (_ for _ in ()).throw(Parsed))


def check(argv: list[str], monkeypatch) -> None:
    """Hand one command line to the parser that would read it.

    Raises:
        SystemExit: If that refuses it.
    """
    program, *rest = argv
    if program in ELSEWHERE:
        return
    if program == "make":
        assert set(rest) <= make_targets(), argv
    elif program == "pip":
        check_extras(rest)
    elif program == "hf-segkd":
        with contextlib.suppress(Parsed):
            commands.main(rest)
    elif program == "accelerate":
        check_launch(rest, monkeypatch)
    elif program == "python":
        check_python(rest, monkeypatch)
    else:
        raise AssertionError(f"nobody knows the command {program!r}: {' '.join(argv)}")


def check_launch(rest: list[str], monkeypatch) -> None:
    """`accelerate launch FLAGS SCRIPT ARGUMENTS`: accelerate's own parser reads the flags."""
    assert rest[0] == "launch", rest
    launch, _ = launch_command_parser().parse_known_args(rest[1:])
    assert launch.config_file is None or os.path.isfile(launch.config_file), launch.config_file
    check_python([launch.training_script, *launch.training_script_args], monkeypatch)


def check_python(rest: list[str], monkeypatch) -> None:
    """`python FILE ...` or `python -m MODULE ...`, run as far as its parser."""
    if rest[:2] == ["-m", "pytest"]:
        assert all((ROOT / name.split("::")[0]).exists() for name in rest[2:] if name.startswith("tests/")), rest
        return
    run, name, arguments = runpy.run_path, rest[0], rest[1:]
    if name == "-m":
        run, name, arguments = runpy.run_module, rest[1], rest[2:]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with contextlib.suppress(Parsed):
        run(name, run_name="__main__")


def check_extras(rest: list[str]) -> None:
    """`pip install 'hf-segkd[onnx]'` names extras that the package has."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for extras in re.findall(r"\[(.*?)\]", " ".join(rest)):
        assert set(extras.split(",")) <= set(setup["options.extras_require"]), rest


def make_targets() -> set[str]:
    heads = re.findall(r"^([a-z][a-z -]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {target for head in heads for target in head.split()}


def test_every_command_of_the_page_on_own_data_is_run():
    """The page promises that each was run as it stands; a block without the mark is only parsed."""
    text = (ROOT / "docs" / "your_own_data.md").read_text(encoding="utf-8")
    assert len(re.findall("```bash\n", text)) == len(re.findall("<!-- runnable -->\n```bash\n", text))


def test_every_mark_stands_above_a_block_that_is_run():
    """A blank line below the mark, or a block of another language, would leave the block out in silence."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert text.count("<!-- runnable -->") == len(RUNNABLE.findall(text)), page.name


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if script_of(page)], ids=lambda page: page.name)
def test_runnable_blocks_run_as_they_stand(page, tmp_path):
    """Nobody reads on after the first command that fails."""
    write_folder(tmp_path, page.name)
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = ["/bin/bash", "-c", script_of(page)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    if page.name == "your_own_data.md":
        for student in ("student", "student_opened", "student_streamed"):
            assert (tmp_path / "runs" / student / "model.safetensors").is_file()
        for pictures in ("predictions", "field_maps"):
            assert list((tmp_path / "runs" / pictures).rglob("*.png"))
