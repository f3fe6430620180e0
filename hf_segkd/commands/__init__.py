"""What `hf-segkd COMMAND`, `python -m hf_segkd COMMAND` and `scripts/COMMAND.py` run."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from hf_segkd.values import did_you_mean

COMMANDS = {
    "distill": "train a student, with a teacher or without",
    "pretrain": "train a student's features without labels, before distill",
    "prepare": "check a dataset, map its masks, write it as parquet or push it",
    "evaluate": "score models on a dataset; compare two",
    "predict": "segment images",
    "label": "label photos with a model or with words, to be corrected",
    "convert": "turn a research checkpoint into a model folder",
    "export": "write a student as ONNX, fp32, fp16 or int8",
    "push": "upload a finished run to the Hub",
    "demo": "show teacher and student side by side in the browser",
    "profile": "parameters, MACs, latency and memory of models",
    "ladder": "find the largest student within a budget of milliseconds",
    "benchmark": "compare methods over several seeds",
    "features": "draw a t-SNE map of pixel features",
    "recipes": "list the recipes that go by name",
    "quickstart": "teacher, student and distilled student on drawn scenes, in minutes",
}


USAGE = """usage: hf-segkd COMMAND ...

Distill a big semantic segmentation model into a small one.

{commands}

`hf-segkd COMMAND --help` shows the options of a command. `HF_SEGKD_TRACEBACK=1` shows where an error comes from.
Completion in the shell: pip install argcomplete, then eval "$(register-python-argcomplete hf-segkd)".
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command that the first word names; return the exit code of the process."""
    if "_ARGCOMPLETE" in os.environ:
        complete(os.environ["COMP_LINE"].split())
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        commands = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items())
        print(USAGE.format(commands=commands), end="")
        return 0
    if argv[0] not in COMMANDS:
        hint = did_you_mean(argv[0], COMMANDS)
        sys.exit(f"error: unknown command {argv[0]!r}.{hint} Commands: {', '.join(COMMANDS)}.")
    result = importlib.import_module(f"hf_segkd.commands.{argv[0]}").main(argv[1:])
    return result if isinstance(result, int) else 0  # most commands return what they found, for callers in Python


def complete(words: list[str]) -> None:
    """Answer the shell, which asks through argcomplete, with commands, recipes and flags; leaves the process."""
    import argcomplete

    parser = argparse.ArgumentParser(prog="hf-segkd")
    commands = parser.add_subparsers()
    for name in COMMANDS:
        known = []
        if len(words) > 1 and words[1] == name:
            module = importlib.import_module(f"hf_segkd.commands.{name}")
            known = [module.parser()]
        commands.add_parser(name, parents=known, add_help=not known, conflict_handler="resolve")
    argcomplete.autocomplete(parser)
