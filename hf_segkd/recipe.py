"""Recipes: YAML files merged left to right, then `--flags` and `--dotted.overrides`, into dataclasses."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser

from hf_segkd.values import check_value, did_you_mean


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `1e-4` is a number and only `true` and `false` are booleans (YAML 1.2's reading).

    A key given twice is an error, and so are aliases: with them a recipe may hold itself, or grow without bound.
    """

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"the alias *{self.peek_event().anchor} is not supported, write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            keys = [self.construct_object(key) for key, _ in node.value]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.YAMLError(f"the key {twice!r} is given twice{node.start_mark}")
        return mapping


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)


class _Parser(HfArgumentParser):
    """Reports a wrong flag as an exception, with the message that argparse would print before leaving."""

    def error(self, message: str):
        raise ValueError(f"{message}. See --help for all keys.")


def load_yaml(text: str) -> Any:
    """Read YAML safely; `1e-4` is a float, `yes` and `on` are strings.

    Raises:
        ValueError: If it is no YAML, or builds what is no plain value: impossible dates, lists that hold themselves.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{_short(text)} is not valid YAML: {reason}. Quote words that are meant as text.") from None


def parse(dataclass_types: tuple[type, ...], argv: list[str]) -> tuple[tuple, dict[str, Any]]:
    """Read a command line of recipes and flags.

    `a.yaml b.yaml --learning_rate 1e-2 --losses.cwd.weight 3`: mappings merge key by key, later files win over
    earlier ones, flags over files. `--losses.cwd null` takes a mapping out again.

    Args:
        dataclass_types (`tuple[type, ...]`): Dataclasses that own the keys: `(ScriptArguments, DistillationConfig)`.
        argv (`list[str]`): Arguments without the program's name.

    Returns:
        `tuple[tuple, dict]`: One instance per dataclass, and the merged recipe with every key that was given.

    Raises:
        ValueError: On a missing or malformed file, an unknown key (with the closest known one) or a bad value.
    """
    files, flags = _split(argv)
    fields = {name for cls in dataclass_types for name in _field_names(cls)}
    recipe: dict[str, Any] = {}
    for file in files:
        recipe = merge(recipe, _read(file))
    dotted = {key: value for key, value in flags if "." in key}
    plain = [part for key, values in flags if "." not in key for part in (f"--{key}", *values)]
    if not {"--help", "-h"} & set(plain):
        _check_keys(fields, [*recipe, *(key.split(".")[0] for key, _ in flags)])
    for key, values in dotted.items():
        recipe = merge(recipe, _nested(key.split("."), load_yaml(" ".join(values)) if values else True))

    parser = _Parser(dataclass_types)
    hints = {name: hint for cls in dataclass_types for name, hint in get_type_hints(cls).items()}
    for action in parser._actions:
        if dict in get_args(hints.get(action.dest)):  # HfArgumentParser makes one of `dict | str`, never both
            action.type = _mapping_or_text
        if action.dest in recipe:
            action.required, action.default = False, _as_text(recipe[action.dest], action)
            if not isinstance(action.default, str):
                check_value(action.dest, action.default, hints[action.dest])
    try:
        instances = parser.parse_args_into_dataclasses(plain, look_for_args_file=False)
    except (TypeError, ImportError) as error:
        raise ValueError(str(error)) from None
    for name, value in (item for instance in instances for item in vars(instance).items()):
        if isinstance(value, int | float) and not isinstance(value, bool) and name in hints:
            check_value(name, value, hints[name])
    for key, values in flags:
        if "." not in key:
            recipe[key.removeprefix("no_") if key not in fields else key] = _given(key in fields, values)
    return instances, recipe


def merge(base: dict, update: dict) -> dict:
    """Return `base` with `update` laid over it; neither is changed.

    Mappings merge, `null` takes a mapping out (`losses: {adversarial: null}`), everything else is replaced.
    """
    merged = dict(base)
    for key, value in update.items():
        if not isinstance(merged.get(key), dict):
            merged[key] = value
        elif value is None:
            del merged[key]
        else:
            merged[key] = merge(merged[key], value) if isinstance(value, dict) else value
    return merged


def dump(recipe: dict[str, Any], path: str | Path) -> None:
    """Write a merged recipe as YAML, in the order of its keys."""
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    Path(path).write_text(text, encoding="utf-8")


def _split(argv: list[str]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Separate leading recipe files from flags with their values: `[("learning_rate", ["0.01"]), ...]`."""
    files, flags = [], []
    for token in argv:
        if token.startswith("--") and len(token) > 2:
            key, equals, value = token[2:].partition("=")
            flags.append((key.replace("-", "_"), [value] if equals else []))
        elif token == "-h":
            flags.append(("help", []))
        elif flags:
            flags[-1][1].append(token)
        else:
            files.append(token)
    return files, flags


def _read(file: str) -> dict[str, Any]:
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"Recipe {file!r} does not exist. Recipes (YAML files) come before the --flags.")
    try:
        content = load_yaml(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # not text, or not YAML
        raise ValueError(f"Recipe {file!r}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"Recipe {file!r} must hold a mapping of keys, got {type(content).__name__}.")
    if odd := [key for key in content if not isinstance(key, str)]:
        raise ValueError(f"Recipe {file!r}: the key {odd[0]!r} must be a word. See --help for all keys.")
    return content


def _check_keys(known: set[str], keys: list[str]) -> None:
    allowed = known | {f"no_{name}" for name in known}
    for key in keys:
        if key not in allowed:
            hint = did_you_mean(key, sorted(known)) or " See --help for all keys."
            raise ValueError(f"Unknown key in the recipe: {key!r}.{hint}")


def _field_names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls) if field.init]


def _given(positive: bool, values: list[str]) -> Any:
    """The value that a flag's words stand for: none is a switch, several are a list."""
    if not values:
        return positive
    return load_yaml(values[0]) if len(values) == 1 else [load_yaml(value) for value in values]


def _mapping_or_text(text: str) -> Any:
    """`{model_type: espnet}` is a mapping, anything else a name or path."""
    return load_yaml(text) if text.lstrip().startswith("{") else text


def _short(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:60]!r}..."


def _nested(keys: list[str], value: Any) -> dict:
    return {keys[0]: _nested(keys[1:], value) if len(keys) > 1 else value}


def _as_text(value: Any, action) -> Any:
    """A YAML value as argparse's default: scalars go through the flag's own type, so that a typo is noticed there."""
    if isinstance(value, bool) or value is None or isinstance(value, list | dict):
        return value
    return str(value) if callable(action.type) else value
