"""The parser that commands share: flags from fields of dataclasses, built without the libraries that do the work."""

from __future__ import annotations

import argparse
import sys
from dataclasses import MISSING, Field, fields
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from dataset_builders import BUILDERS
from hf_segkd.console import emphasized
from hf_segkd.values import closest, did_you_mean


class CommandParser(argparse.ArgumentParser):
    """`ArgumentParser` of `hf-segkd NAME`; `--data-dir` is the same as `--data_dir`.

    Args:
        name (`str`): The command.
        description (`str`): Shown as it is; the docstring of the command's module.
    """

    def __init__(self, name: str, description: str, **options: Any):
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(f"hf-segkd {name}", description=description, formatter_class=form, **options)

    def parse_args(self, args=None, namespace=None):
        # Before argparse, which would report the required flag that a misspelled one was meant to be as missing.
        known = [option for option in self._option_string_actions if option.startswith("--")]
        for word in sys.argv[1:] if args is None else args:
            if word == "--":
                break
            name = _underscored(word.partition("=")[0])
            if _is_option(word) and not any(_underscored(x).startswith(name) for x in known):
                self.error(f"unknown option {word.partition('=')[0]}.{self._hint(name, known)}")
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: {emphasized('error:', sys.stderr)} {message}\n")

    def _hint(self, name: str, known: list[str]) -> str:
        """What an unknown option may have been meant to be: a positional argument, or an option."""
        positional = [action.dest for action in self._get_positional_actions()]
        if meant := closest(name.lstrip("-"), positional, cutoff=0.8):
            return f" '{meant}' is given without a flag: {self.prog} {meant.upper()} ..."
        return did_you_mean(f"--{name.lstrip('-')}", known)

    def parse_known_args(self, args=None, namespace=None):
        words = sys.argv[1:] if args is None else args
        # `--no-align_corners`, as argparse calls it, is spelled either way too.
        known = {_underscored(option): option for option in self._option_string_actions}
        return super().parse_known_args([_known(word, known) for word in words], namespace)


def add_dataset(parser: argparse.ArgumentParser, purpose: str, required: bool = False) -> None:
    """Add the flags that name a dataset: `--data`, or `--dataset` and `--data_dir`."""
    group = parser.add_mutually_exclusive_group(required=required)
    group.add_argument("--data", help=f"{purpose}: your own folder, the name of a dataset, or a Hub id")
    names = ", ".join(BUILDERS)
    group.add_argument("--dataset", help=f"dataset by name: {names}; or a folder or Hub id that `datasets` opens")
    parser.add_argument("--data_dir", help="with --dataset: folder of the raw dataset")


def add_fields(parser: argparse.ArgumentParser, cls: type, title: str) -> None:
    """Add a group with one flag for each field of a dataclass.

    The annotation gives type, choices (`Literal`) and number of values (`tuple[int, int]`, `list[str]`); the field's
    metadata gives `help` and, where it is more telling, `metavar`.
    """
    hints = get_type_hints(cls)
    group = parser.add_argument_group(title)
    for field in fields(cls):
        add_field(group, field, hints[field.name])


def add_field(parser, field: Field, hint: Any) -> None:
    """Add the flag of one field to a parser or a group; `hint` is the field's resolved annotation."""
    parser.add_argument(f"--{field.name}", **_options(field, hint))


def _options(field: Field, hint: Any) -> dict[str, Any]:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    options = {"default": _default(field), "help": _help(field)}
    if bool in kinds:
        either = NoneType in kinds or field.default is True
        return options | {"action": argparse.BooleanOptionalAction if either else "store_true"}
    if "metavar" in field.metadata:
        options["metavar"] = field.metadata["metavar"]
    if str in kinds and any(get_origin(kind) is list for kind in kinds):
        return options | {"nargs": "+"}
    if str in kinds:  # also `dict | str`: YAML text, or the name of a file
        return options
    kind = kinds[0]
    if get_origin(kind) is Literal:
        return options | {"choices": get_args(kind)}
    if get_origin(kind) in (list, tuple):
        inner = get_args(kind)
        exact = get_origin(kind) is tuple and Ellipsis not in inner
        return options | {"type": inner[0], "nargs": len(inner) if exact else "+"}
    return options | {"type": kind}


def _default(field: Field) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


def _help(field: Field) -> str:
    text = field.metadata.get("help", "")
    default = _default(field)
    if "(default" in text or default is None or default is False:
        return text
    shown = " ".join(map(str, default)) if isinstance(default, tuple | list) else default
    return f"{text.rstrip('.')} (default: {shown})."


def _is_option(word: str) -> bool:
    """Whether a word is an option by its look: `--name`, or `-name`, which argparse would read as letters."""
    return len(word) > 2 and word[0] == "-" and (word[1] == "-" or word[1:3].isalpha())


def _known(word: str, known: dict[str, str]) -> str:
    name, equals, value = word.partition("=")
    return known.get(_underscored(name), name) + equals + value if word.startswith("--") else word


def _underscored(name: str) -> str:
    return "--" + name[2:].replace("-", "_") if name.startswith("--") else name
