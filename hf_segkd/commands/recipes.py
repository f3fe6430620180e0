"""List the recipes that go by name, and the students, one line each.

hf-segkd recipes
hf-segkd recipes camvid
hf-segkd recipes mobilenetv3
"""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from typing import Any

from hf_segkd.commands.flags import CommandParser
from hf_segkd.loading.student_names import STUDENTS
from hf_segkd.recipe import KINDS, RECIPES, recipe_names


def main(argv: list[str] | None = None) -> None:
    """Print name and first sentence of each recipe, by kind, and what each student's name stands for."""
    word = parser().parse_args(argv).word.lower()
    kinds = {kind: {name: summary(kind, name) for name in recipe_names()[kind]} for kind in KINDS}
    kinds["students"] = {name: described(fields) for name, fields in STUDENTS.items()}
    for kind, summaries in kinds.items():
        found = {name: text for name, text in summaries.items() if word in f"{name} {text}".lower()}
        if not found:
            continue
        print(f"\n{kind}")
        width = max(map(len, found))
        room = max(40, shutil.get_terminal_size((119, 24)).columns - width - 4)
        for name, text in found.items():
            print(f"  {name:<{width}}  {textwrap.shorten(text, room, placeholder=' ...')}")
    print("\nTrain with one of each, in this order: hf-segkd distill DATASET PAIR METHOD --output_dir FOLDER")
    print("Another student: --student NAME, or --student '{name: NAME, backbone_weights: FOLDER, FILE OR HUB ID}'")


def described(fields: dict[str, Any]) -> str:
    """Fields of a new student as they would be written: `{model_type: espnet, use_decoder: false}`."""
    return json.dumps(fields).replace('"', "")


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
