"""Type checks for recipe values, and suggestions for misspelled names."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, Union, get_args, get_origin

NAMES = {float: "a finite number", int: "a whole number", str: "a word", bool: "true or false"}
NAMES |= {dict: "a mapping", type(None): "null"}


def check_value(name: str, value: Any, hint: Any) -> None:
    """Check a value from YAML against a type: `float`, `int`, `str`, `bool`, `dict`, `Literal`, lists, tuples, unions.

    Args:
        name (`str`): What the message calls it: `losses.kd.temperature`.
        value: The value that was given.
        hint: The annotation; types that YAML cannot write are accepted unseen.

    Raises:
        ValueError: If the value is of another type, or not a finite number where a number is wanted.
    """
    if not _fits(value, hint):
        raise ValueError(f"{name} must be {_describe(hint)}, got {value!r}.{did_you_mean(value, words(hint))}")


def check_license(license: str | None) -> None:
    """Check that a license is written as the Hub writes them.

    Raises:
        ValueError: It is not.
    """
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ValueError(
            f"license must be written as on the Hub: apache-2.0, mit, cc-by-nc-4.0, other, ...; got {license!r}. "
            "https://huggingface.co/docs/hub/repositories-licenses lists all."
        )


def without_paths(value: Any) -> Any:
    """Copy of a YAML or JSON value with absolute paths shortened to their last part.

    Absolute ones and those from the home folder name a machine and a user; names relative to the folder do not.
    """
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    if isinstance(value, str) and "\n" not in value:
        windows = PureWindowsPath(value)
        if windows.drive and windows.root:
            return windows.name or value
        if value.startswith(("/", "~", "..")):
            return Path(value).name or value
    return value


def words(hint: Any) -> list[str]:
    """The words that a `Literal` anywhere in an annotation allows."""
    if get_origin(hint) is Literal:
        return [word for word in get_args(hint) if isinstance(word, str)]
    return [word for one in get_args(hint) for word in words(one)]


def _fits(value: Any, hint: Any) -> bool:
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if kind is Literal:
        return value in inner
    if kind in (list, tuple):
        return isinstance(value, list | tuple) and all(_fits(x, inner[0]) for x in value)
    if kind in (int, float):
        number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        return number and abs(value) < 2**63  # false for NaN and infinities
    return isinstance(value, kind) if kind in NAMES else True


def _describe(hint: Any) -> str:
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        return " or ".join(_describe(one) for one in inner)
    if kind in (list, tuple):
        return f"a list, each entry {_describe(inner[0])}"
    if kind is Literal:
        listed = ", ".join(map(repr, inner))
        return listed if len(inner) == 1 else f"one of {listed}"
    return NAMES.get(kind, str(kind))


def closest(name: Any, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name closest to a misspelled one, or `None` when none is close.

    Args:
        name: What was given.
        known (`Iterable[str]`): Names that exist.
        cutoff (`float`, *optional*, defaults to `0.6`): How similar the two must be, from 0 to 1.
    """
    matches = get_close_matches(str(name), list(known), n=1, cutoff=cutoff)
    return matches[0] if matches else None


def did_you_mean(name: Any, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return " Did you mean 'x'?" for the [`closest`] known name, or "" when none is close."""
    match = closest(name, known, cutoff)
    return f" Did you mean {match!r}?" if match else ""


def check_choice(name: str, value: Any, choices: Iterable) -> None:
    """Check that an argument is one of a fixed set.

    Args:
        name (`str`): What the message calls it.
        value: The value that was given.
        choices (`Iterable`): The values that are allowed.

    Raises:
        ValueError: If it is none of them.
    """
    choices = list(choices)
    if value in choices:
        return
    hint = did_you_mean(value, [str(choice) for choice in choices])
    raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}.{hint}")


def check_positive(name: str, value: float) -> None:
    """Check that a number is above 0.

    Raises:
        ValueError: If it is not; NaN is not.
    """
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}.")
