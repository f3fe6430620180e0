"""Write the tables of docs/recipes.md: every recipe, and for every published result the command and both numbers.

python docs/make_recipes.py [--check]

Cited numbers come from docs/published.yaml, measured ones from docs/results.md, the rest from the recipes themselves.
The text above the mark in docs/recipes.md is written by hand and kept.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from written import write_pages

from hf_segkd.recipe import load_yaml

DOCS = Path(__file__).resolve().parent
RECIPES = DOCS.parent / "hf_segkd" / "recipes"
PAGE = DOCS / "recipes.md"
MARK = "<!-- From here on written by docs/make_recipes.py -->\n"


def main() -> None:
    write_pages(__doc__, lambda: {PAGE: render(PAGE.read_text(encoding="utf-8"))})


def render(page: str) -> str:
    """The page with its tables written afresh."""
    parts = [page.partition(MARK)[0] + MARK]
    for kind in ("datasets", "pairs", "methods"):
        rows = [(f"`{path.stem}`", first_comment(path)) for path in sorted((RECIPES / kind).glob("*.yaml"))]
        parts.append(f"## {kind.capitalize()}\n\n" + markdown_table((kind[:-1], "what it is"), rows))
    parts.append("## Published results\n\nmIoU in percent. A dash means that our sources have no number.\n")
    parts += [section(table) for table in published()]
    return "\n".join(parts)


def published() -> list[dict[str, Any]]:
    """The tables of docs/published.yaml."""
    return load_yaml((DOCS / "published.yaml").read_text(encoding="utf-8"))["tables"]


@cache
def differences() -> dict[str, str]:
    """What all rows of a method do differently from the original, by recipe."""
    return load_yaml((DOCS / "published.yaml").read_text(encoding="utf-8"))["differences"]


def section(table: dict[str, Any]) -> str:
    """One table with its heading, teacher, source and note."""
    facts = [f"Teacher: {table['teacher']}. Source: {table['source']}."]
    facts += [table["note"]] if "note" in table else []
    rows = [cells for row in table["rows"] for cells in row_lines(table | row)]
    head = ("student", "method", "command", "processes x images", "published", "ours", "differs", "script")
    return f"### {table['name']}\n\n{' '.join(facts)}\n\n" + markdown_table(head, rows)


def row_lines(row: dict[str, Any]) -> list[tuple[str, ...]]:
    """The published line, and the repaired one where the original has a quirk that we would not repeat."""
    lines = [row_cells(row)]
    if "quirk" in row:
        command = f"`{command_line(row, repaired=True)}`"
        lines.append((row["student"], f"{row['method']}, repaired", command, lines[0][3], "", "", "", ""))
    return lines


def row_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """What the table shows of a row that has its table's keys too."""
    command = row.get("no_recipe") or f"`{command_line(row)}`"
    numbers = row.get("published", {}).items()
    cited = ", ".join(value if split == "mIoU" else f"{value} {split}" for split, value in numbers)
    ours = f"[{measured(**row['ours'])}](results.md)" if "ours" in row else ""
    shared = f"{row['processes']} x {images_per_process(row)}" if "processes" in row else ""
    differs = "" if "no_recipe" in row else differs_in(row) or "exact"
    return row["student"], row["method"], command, shared, cited or "–", ours, differs, script_link(row)


def differs_in(row: dict[str, Any]) -> str:
    """What the row still does differently from the original; empty for nothing."""
    return row.get("differs") or differences().get(row.get("recipe", row["method"]), "")


def script_link(row: dict[str, Any]) -> str:
    """The original script that the row's values are from, as a link where its commit is known."""
    place, _, file = row.get("script", "").partition(":")
    repository, _, commit = place.partition("@")
    if not commit:
        return place and f"{repository}: {file.strip()}"
    return f"[{file.rsplit('/', 1)[-1]}](https://github.com/{repository}/blob/{commit}/{file})"


def images_per_process(row: dict[str, Any]) -> int:
    """The original's images per step divided by its processes."""
    recipe = load_yaml((RECIPES / "datasets" / f"{row['dataset']}.yaml").read_text(encoding="utf-8"))
    return recipe["total_batch_size"] // row["processes"]


def command_line(row: dict[str, Any], repaired: bool = False) -> str:
    """`distill` with its arguments, and the variables that it reads where they matter."""
    variables = ["BACKBONE="] if row.get("no_backbone") else []
    variables += [f"PROCESSES={row['processes']}"] if row.get("processes", 1) > 1 else []
    return " ".join([*variables, "distill", *arguments(row, repaired)])


def arguments(row: dict[str, Any], repaired: bool = False) -> list[str]:
    """What follows `distill` on the command line: dataset, pair, method, flags."""
    names = [row["dataset"], row["pair"], row.get("recipe", row["method"])]
    flags = row.get("flags", "").split()
    if row.get("processes", 1) > 1:
        flags += ["--per_device_train_batch_size", str(images_per_process(row))]
    if not repaired:
        flags += row.get("quirk", "").split()
    return [*names, *flags]


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
