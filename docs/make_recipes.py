"""Write the tables of docs/recipes.md: every recipe, and for every published result the command and both numbers.

python docs/make_recipes.py [--check]

Cited numbers come from docs/published.yaml, measured ones from docs/results.md, the rest from the recipes themselves.
What stands above the mark in docs/recipes.md is written by hand and stays.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from hf_segkd.recipe import load_yaml

DOCS = Path(__file__).resolve().parent
RECIPES = DOCS.parent / "hf_segkd" / "recipes"
PAGE = DOCS / "recipes.md"
MARK = "<!-- From here on written by docs/make_recipes.py -->\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if the page is not what would be written")
    args = parser.parse_args()
    old = PAGE.read_text(encoding="utf-8")
    new = render(old)
    if not args.check:
        PAGE.write_text(new, encoding="utf-8")
    elif new != old:
        sys.exit("docs/recipes.md is out of date: run python docs/make_recipes.py")


def render(page: str) -> str:
    """The page with its tables written afresh."""
    parts = [page.partition(MARK)[0] + MARK]
    for kind in ("datasets", "pairs", "methods"):
        rows = [(f"`{path.stem}`", first_comment(path)) for path in sorted((RECIPES / kind).glob("*.yaml"))]
        parts.append(f"## {kind.capitalize()}\n\n" + markdown_table((kind[:-1], "what it is"), rows))
    parts.append("## Published results\n\nmIoU in percent. A dash: no number in our sources.\n")
    parts += [section(table) for table in published()]
    return "\n".join(parts)


def published() -> list[dict[str, Any]]:
    """The tables of docs/published.yaml."""
    return load_yaml((DOCS / "published.yaml").read_text(encoding="utf-8"))


def section(table: dict[str, Any]) -> str:
    """One table with its heading, teacher, source and note."""
    facts = [f"Teacher: {table['teacher']}. Source: {table['source']}."]
    facts += [table["note"]] if "note" in table else []
    rows = [row_cells(table | row) for row in table["rows"]]
    head = ("student", "method", "command", "published", "ours")
    return f"### {table['name']}\n\n{' '.join(facts)}\n\n" + markdown_table(head, rows)


def row_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Student, method, command, published and measured mIoU of a row that has its table's keys too."""
    command = row.get("no_recipe") or f"`distill {' '.join(arguments(row))}`"
    numbers = row.get("published", {}).items()
    cited = ", ".join(value if split == "mIoU" else f"{value} {split}" for split, value in numbers)
    ours = f"[{measured(**row['ours'])}](results.md)" if "ours" in row else "not run here"
    return row["student"], row["method"], command, cited or "–", ours


def arguments(row: dict[str, Any]) -> list[str]:
    """What follows `distill` on the command line: dataset, pair, method, flags."""
    return [row["dataset"], row["pair"], row.get("recipe", row["method"]), *row.get("flags", "").split()]


def measured(section: str, row: str, column: str) -> str:
    """A cell of a table of docs/results.md, by its section's heading and the table's own head and first column.

    Raises:
        ValueError: There is no such cell.
    """
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    body = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    lines = [line for line in body.splitlines() if line.startswith("|")]
    cells = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]
    for line in cells:
        if line[0] == row and column in cells[0]:
            return line[cells[0].index(column)]
    raise ValueError(f"docs/results.md has no row {row!r} with a column {column!r} in the section {section!r}.")


def first_comment(path: Path) -> str:
    """The comment at the top of a recipe, as one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.removeprefix("# ") for line in lines[:end])


def markdown_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
