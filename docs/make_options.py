"""Write docs/options.md: every option of every command, from the dataclasses and parsers that read them.

python docs/make_options.py [--check]
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from written import write_pages

from dataset_builders import DataArguments
from hf_segkd.commands import COMMANDS
from hf_segkd.losses import LOSSES
from hf_segkd.training.options import DistillationArguments, ScriptArguments, option_groups

PAGE = Path(__file__).with_name("options.md")
HEADER = """# Options

Written by `python docs/make_options.py`. Options of `hf-segkd distill` are keys of a recipe too, and arguments of
`hf_segkd.distill(...)`: `--max_steps 2000`, `max_steps: 2000`, `max_steps=2000`. `--a-b` is the same as `--a_b`. A dot
reaches into a mapping: `--losses.kd.weight 2`. With `--data`, what is not given is
[derived](your_own_data.md#without-choosing-anything). The options of transformers' `TrainingArguments` work as well:
`hf-segkd distill --help-all` lists them.
"""
TABLE = "| option | what it does | values | default |\n|---|---|---|---|\n"
LOSS_HEADER = """
## Options of the losses

Under `losses.NAME`, as in `--losses.kd.temperature 4`. Each loss also takes `weight`, a number or a schedule of one.
What they do: [Losses](api/losses.md); ideas and costs: [Methods](methods.md).

| loss | options and defaults |
|---|---|
"""


def main() -> None:
    write_pages(__doc__, lambda: {PAGE: render()})


def render() -> str:
    """The whole page."""
    parts = [HEADER, "\n## hf-segkd distill\n"]
    hints = get_type_hints(ScriptArguments) | get_type_hints(DistillationArguments)
    for title, options in option_groups().items():
        parts.append(f"\n### {title.capitalize()}\n\n{TABLE}")
        parts += [field_row(option, hints[option.name]) for option in options]
    parts.append(LOSS_HEADER)
    parts += [loss_row(name) for name in LOSSES]
    parts += [command_section(name) for name in COMMANDS if name != "distill"]
    return "".join(parts)


def field_row(option: Field, hint: Any) -> str:
    """One option of a training run."""
    default = option.default
    if option.default_factory is not MISSING:
        default = option.default_factory()
    required = option.default is MISSING and option.default_factory is MISSING
    return row(f"--{option.name}", values(hint), "required" if required else shown(default), option.metadata["help"])


def row(name: str, kind: str, default: str, text: str) -> str:
    text = re.sub(r" \(default: [^()]*\)\.?$", ".", text or "") if default else text or ""
    return f"| `{name}` | {cell(text)} | {kind} | {default} |\n"


def values(hint: Any) -> str:
    """What an option takes, in words."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return " or ".join(dict.fromkeys(value(kind) for kind in kinds if kind is not NoneType))


def value(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if get_origin(kind) in (list, tuple):
        plurals = {int: "whole numbers", float: "numbers", str: "words", dict: "mappings"}
        inner = get_args(kind)[0]
        return " or ".join(plurals[part] for part in get_args(inner) or (inner,))
    names = {"bool": "flag", "int": "whole number", "float": "number", "str": "text", "dict": "mapping"}
    return names[(get_origin(kind) or kind).__name__]


def shown(default: Any) -> str:
    """A default as one would type it."""
    if default is None or default is False or default in ("", argparse.SUPPRESS, []):
        return ""
    if isinstance(default, list | tuple):
        return f"`{' '.join(map(str, default))}`"
    return f"`{default}`"


def loss_row(name: str) -> str:
    """The options of one loss, from its constructor."""
    options = list(inspect.signature(LOSSES[name]).parameters.values())[1:]
    told = [f"`{option.name}={option.default!r}`" for option in options if option.default is not option.empty]
    return f"| `{name}` | {', '.join(told)} |\n"


def command_section(name: str) -> str:
    """The table of another command, without the options of data, which all share."""
    parser = importlib.import_module(f"hf_segkd.commands.{name}").parser()
    shared = {option.name for option in fields(DataArguments)} | {"help"}
    actions = [action for action in parser._actions if action.dest not in shared]
    skipped = len(parser._actions) > len(actions) + 1
    summary = COMMANDS[name][0].upper() + COMMANDS[name][1:]
    head = f"\n## hf-segkd {name}\n\n{summary}.\n\n"
    table = TABLE + "".join(map(action_row, actions))
    return head + table + ("\nAnd the options of your own [data](#data).\n" if skipped else "")


def action_row(action: argparse.Action) -> str:
    """One option of argparse."""
    name = action.option_strings[0] if action.option_strings else (action.metavar or action.dest).upper()
    kind = "flag" if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction) else "text"
    if action.type in (int, float):
        kind = "whole number" if action.type is int else "number"
    if action.choices:
        kind = ", ".join(f"`{choice}`" for choice in action.choices)
    default = "required" if action.required and action.option_strings else shown(action.default)
    text = action.help % {**vars(action), "prog": "hf-segkd"} if action.help else ""
    return row(name, kind, default, text)


def cell(text: str) -> str:
    """Text that stays in its cell of a Markdown table, and whose angle brackets and stars are shown."""
    text = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return text.replace("*", "\\*").replace("_", "\\_")


if __name__ == "__main__":
    main()
