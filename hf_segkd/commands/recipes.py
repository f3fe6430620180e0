"""List the recipes that go by name, one line each.

hf-segkd recipes
hf-segkd recipes camvid
"""

from __future__ import annotations

import argparse
import shutil
import textwrap

from hf_segkd.commands.flags import CommandParser
from hf_segkd.recipe import KINDS, RECIPES, recipe_names


def main(argv: list[str] | None = None) -> None:
    """Print name and first sentence of each recipe, by kind."""
    word = parser().parse_args(argv).word.lower()
    for kind in KINDS:
        summaries = {name: summary(kind, name) for name in recipe_names()[kind]}
        found = {name: text for name, text in summaries.items() if word in f"{name} {text}".lower()}
        if not found:
            continue
        print(f"\n{kind}")
        width = max(map(len, found))
        room = max(40, shutil.get_terminal_size((119, 24)).columns - width - 4)
        for name, text in found.items():
            print(f"  {name:<{width}}  {textwrap.shorten(text, room, placeholder=' ...')}")
    print("\nTrain with one of each, in this order: hf-segkd distill DATASET PAIR METHOD --output_dir FOLDER")


def summary(kind: str, name: str) -> str:
    """The comment at the head of a recipe."""
    lines = []
    for line in (RECIPES / kind / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def parser() -> argparse.ArgumentParser:
    """Command line of this command."""
    parser = CommandParser("recipes", __doc__)
    parser.add_argument("word", nargs="?", default="", help="show only recipes that mention it")
    return parser
