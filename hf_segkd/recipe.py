"""Recipes: YAML files merged left to right, then `--flags` and `--dotted.overrides`, into dataclasses."""

from __future__ import annotations

import dataclasses
import re
from enum import Enum
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from hf_segkd.values import check_value, closest, did_you_mean

RECIPES = Path(__file__).parent / "recipes"
KINDS = ("datasets", "pairs", "methods")  # in the order in which a command names them
MAX_DEPTH = 50  # levels of nesting; recipes have five


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `1e-4` is a number and only `true` and `false` are booleans (YAML 1.2's reading).

    A key given twice is an error, and so are tags, deep nesting and aliases: with aliases a recipe may hold itself, or
    grow without bound.
    """

    depth = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"the alias *{event.anchor} is not supported, write the value out")
        if event.tag is not None:
            raise yaml.YAMLError(f"the tag {event.tag} is not supported, write the plain value")
        if self.depth == MAX_DEPTH:
            raise yaml.YAMLError(f"it is nested more than {MAX_DEPTH} levels deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node, deep=False):
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            keys = [self.construct_object(key) for key, _ in node.value]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.YAMLError(f"the key {twice!r} is given twice{node.start_mark}")
        return mapping


class _Dumper(yaml.SafeDumper):
    """Quotes every text that this loader or a plain YAML loader would read as something else."""

    def represent_str(self, data):
        # PyYAML writes some line breaks of Unicode unescaped between single quotes, where they are read as spaces.
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)
dump_text = partial(yaml.dump, Dumper=_Dumper, sort_keys=False, allow_unicode=True)  # what `dump` writes

_FLOAT = re.compile(
    r"^[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"
)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def load_yaml(text: str) -> Any:
    """Read YAML safely; `1e-4` is a float, `yes` and `on` are strings.

    Raises:
        ValueError: If it is no YAML, or builds what is no plain value: impossible dates, lists that hold themselves.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        shown = repr(text) if len(text) <= 60 else f"{text[:60]!r}..."
        raise ValueError(f"{shown} is not valid YAML: {reason}. Quote words that are meant as text.") from None


def parse(
    dataclass_types: tuple[type, ...], argv: list[str], base: dict[str, Any] | None = None
) -> tuple[tuple, dict[str, Any]]:
    """Read a command line of recipes and flags.

    `camvid my.yaml --learning_rate 1e-2 --losses.cwd.weight 3`: mappings merge key by key, later recipes win over
    earlier ones, flags over recipes. `--losses.cwd null` takes a mapping out again.

    Args:
        dataclass_types (`tuple[type, ...]`): Dataclasses that own the keys: `(ScriptArguments, DistillationConfig)`.
        argv (`list[str]`): Arguments without the program's name.
        base (`dict`, *optional*): Values that every recipe and flag wins over.

    Returns:
        `tuple[tuple, dict]`: One instance per dataclass, and the merged recipe with every key that was given, as its
        field reads it: of a text field the text itself.

    Raises:
        ValueError: On a missing or malformed recipe, an unknown key (with the closest known one) or a bad value.
    """
    words, flags = _split(argv)
    fields = {field.name for cls in dataclass_types for field in dataclasses.fields(cls) if field.init}
    recipe: dict[str, Any] = dict(base or {})
    for file in find_recipes(words):
        recipe = merge(recipe, _read(file))
    _check_keys(fields, [*recipe, *(key.split(".")[0] for key, _ in flags)])
    given = [(key, values) for key, values in flags if "." not in key]
    for key, values in flags:
        if "." in key:
            if (name := key.split(".")[0]) in dict(given):
                raise ValueError(f"--{name} and --{key}: one would be lost. Name a student by --student.name NAME.")
            recipe = merge(recipe, _nested(key.split("."), load_yaml(" ".join(values)) if values else True))

    hints = {name: hint for cls in dataclass_types for name, hint in get_type_hints(cls).items()}
    parser = _parser(dataclass_types, hints, recipe)
    try:
        options, stray = parser.parse_known_args([word for key, values in given for word in _as_words(key, values)])
        if stray:
            raise ValueError(f"{' '.join(stray)!r} belongs to no flag. Recipes come before the first flag.")
        values = vars(options)
        for key, _ in given:
            name = key if key in fields else key.removeprefix("no_")
            if str in get_args(hints.get(name)) and isinstance(values[name], list) and len(values[name]) == 1:
                values[name] = values[name][0]  # `--teacher a`: one where several may be given
            recipe[name] = values[name].value if isinstance(values[name], Enum) else values[name]
        instances = parser.parse_dict(values)
    except (TypeError, ImportError) as error:
        raise ValueError(str(error)) from None
    for name, value in (item for instance in instances for item in vars(instance).items()):
        if isinstance(value, int | float) and not isinstance(value, bool) and name in hints:
            check_value(name, value, hints[name])
    return instances, recipe


def _parser(dataclass_types: tuple[type, ...], hints: dict[str, Any], recipe: dict[str, Any]):
    """A parser of all fields with the recipe's values as defaults; raises errors instead of printing them."""
    from transformers import HfArgumentParser

    parser = HfArgumentParser(dataclass_types, allow_abbrev=False, add_help=False)
    parser.error = _refuse
    for action in parser._actions:
        kinds = get_args(hints.get(action.dest))
        if dict in kinds:  # HfArgumentParser makes one of `dict | str`, never both
            action.type = mapping_or_text
        if str in kinds and list in map(get_origin, kinds):
            action.nargs = "+"
        if action.dest in recipe:
            action.required = False
            action.default = _default(action.dest, recipe[action.dest], hints[action.dest])
    return parser


def _refuse(message: str) -> None:
    raise ValueError(f"{message}. `hf-segkd distill --help` lists the keys.")


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
    """Write a merged recipe as YAML, in the order of its keys; `load_yaml` gives the same values back."""
    Path(path).write_text(dump_text(recipe), encoding="utf-8")


def recipe_names() -> dict[str, list[str]]:
    """Names of the recipes that come with the library, by kind: `{"datasets": ["ade20k", ...], ...}`."""
    return {kind: sorted(path.stem for path in (RECIPES / kind).glob("*.yaml")) for kind in KINDS}


def find_recipes(words: list[str]) -> list[Path]:
    """Find the files of recipes that are given by name, in the order dataset, pair, method, or by path.

    Args:
        words (`list[str]`): `"camvid"`, `"datasets/camvid"`, or the path of a YAML file.

    Raises:
        ValueError: If there is no such recipe (with the closest name), or the name is of two kinds and its position
            does not tell which is meant.
    """
    names = recipe_names()
    files = []
    next_kind = 0
    for word in words:
        kind, _, name = word.rpartition("/")
        kinds = [kind] if kind in KINDS and name in names[kind] else [kind for kind in KINDS if word in names[kind]]
        if not kinds:
            files.append(_recipe_file(word, names))
            next_kind = len(KINDS)  # a file may be of any kind: what follows it has no known position
            continue
        following = [kind for kind in kinds if KINDS.index(kind) >= next_kind]
        if len(kinds) > 1 and not following:
            meant = " or ".join(f"{kind}/{word}" for kind in kinds)
            raise ValueError(f"The recipe {word!r} is ambiguous in this place. Write {meant}.")
        kind = following[0] if following else kinds[0]
        next_kind = KINDS.index(kind) + 1
        files.append(RECIPES / kind / f"{name}.yaml")
    return files


def _recipe_file(word: str, names: dict[str, list[str]]) -> Path:
    path = Path(word)
    if path.is_file():
        return path
    by_name = {name: f"{kind}/{name}" for kind in reversed(KINDS) for name in names[kind]}
    hint = ""
    if name := closest(path.stem if path.suffix else path.name, by_name):
        hint = f" Did you mean {name!r} ({by_name[name].split('/')[0]})?"
    if path.suffix in (".yaml", ".yml"):
        raise ValueError(f"Recipe {word!r} does not exist.{hint} Recipes come before the --flags.")
    raise ValueError(
        f"Unknown recipe {word!r}.{hint} `hf-segkd recipes` lists those that go by name; others are .yaml files. "
        "Recipes come before the --flags."
    )


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
    for key, values in flags:
        if "--" in values:  # argparse would take it out
            raise ValueError(f"--{key}: '--' cannot be a value. Leave it out, or write './--' for a file.")
    return files, flags


def _read(path: Path) -> dict[str, Any]:
    try:
        content = load_yaml(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # not text, or not YAML
        raise ValueError(f"Recipe {str(path)!r}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"Recipe {str(path)!r} must hold a mapping of keys, got {type(content).__name__}.")
    for key in content:
        if not isinstance(key, str):
            raise ValueError(f"Recipe {str(path)!r}: the key {key!r} must be a word.")
    return content


def _check_keys(known: set[str], keys: list[str]) -> None:
    allowed = known | {f"no_{name}" for name in known}
    for key in keys:
        if key not in allowed:
            hint = did_you_mean(key, sorted(known)) or " `hf-segkd distill --help-all` lists all keys."
            raise ValueError(f"Unknown key in the recipe: {key!r}.{hint}")


def _as_words(key: str, values: list[str]) -> list[str]:
    """A flag for argparse; written with `=`, a value may begin with a dash."""
    return [f"--{key}={values[0]}"] if len(values) == 1 else [f"--{key}", *values]


def mapping_or_text(text: str) -> Any:
    """`{model_type: espnet}` is a mapping, anything else a name or path."""
    return load_yaml(text) if text.lstrip().startswith("{") else text


def _nested(keys: list[str], value: Any) -> dict:
    return {keys[0]: _nested(keys[1:], value) if len(keys) > 1 else value}


def _default(name: str, value: Any, hint: Any) -> Any:
    """A value of a recipe as argparse's default: scalars go through the flag's own type, which notices a typo."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = {get_origin(member) or member for member in members}
    text_only = kinds <= {str, type(None)}
    list_only = list in kinds and str not in kinds
    unfit = list_only or (text_only and not isinstance(value, str))
    if unfit or value is None or isinstance(value, bool | list | dict):
        try:
            check_value(name, value, hint)
        except ValueError as error:
            quote = " Put quotes around text." if text_only else ""
            raise ValueError(f"{error}{quote}") from None
        return value
    return str(value)
