"""Whether a value of a recipe is one that an annotation allows."""

from __future__ import annotations

import math
import types
from typing import Any, Literal, Union, get_args, get_origin

NAMES = {float: "a finite number", int: "a whole number", str: "a word", bool: "true or false"}
NAMES |= {dict: "a mapping", type(None): "null"}


def check_value(name: str, value: Any, hint: Any) -> None:
    """Check a value from YAML against a type: `float`, `int`, `str`, `bool`, `dict`, lists, tuples, unions.

    Args:
        name (`str`): What the message calls it: `losses.kd.temperature`.
        value: The value that was given.
        hint: The annotation; types that YAML cannot write are accepted unseen.

    Raises:
        ValueError: If the value is of another type, or not a finite number where a number is wanted.
    """
    if not _fits(value, hint):
        raise ValueError(f"{name} must be {_describe(hint)}, got {value!r}.")


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    hint = dict if get_origin(hint) is dict else hint
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (list, tuple):
        return isinstance(value, list | tuple) and all(_fits(x, get_args(hint)[0]) for x in value)
    if hint in (int, float):
        number = isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
        return number and abs(value) < 2**63 and math.isfinite(value)
    return isinstance(value, hint) if hint in NAMES else True


def _describe(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_describe(one) for one in get_args(hint))
    if get_origin(hint) in (list, tuple):
        return f"a list, each entry {_describe(get_args(hint)[0])}"
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    return NAMES.get(dict if get_origin(hint) is dict else hint, str(hint))
