"""docs/contributing.md names the private members of Trainer that this library relies on."""

import ast
import re

from transformers import Trainer

from helpers.paths import ROOT

SECTION = "## What we rely on in Trainer"


def members() -> set[str]:
    """Private names of `Trainer` that the training code overrides, calls or reads."""
    found = set()
    for path in (ROOT / "hf_segkd" / "training").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute):
                found.add(node.attr)
    return {name for name in found if name.startswith("_") and not name.startswith("__") and hasattr(Trainer, name)}


def test_page_names_the_private_members_we_rely_on():
    """A release of transformers may rename them: whoever raises the span must know where to look."""
    section = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8").split(SECTION)[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(_\w+)`", section, flags=re.MULTILINE)) == members()
