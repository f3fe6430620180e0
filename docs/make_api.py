"""Write docs/api/*.md: one page for the names of `hf_segkd` itself, one for each room of the package.

python docs/make_api.py [--check]

The pages hold the names alone; `make docs` puts the docstrings in their place.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from written import write_pages

import hf_segkd

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
# Room -> title; in the order in which a reader meets them.
ROOMS = {
    "training": "Training",
    "evaluation": "Evaluation",
    "loading": "Loading",
    "losses": "Losses",
    "models": "Networks",
    "data": "Data",
    "dataset_builders": "Datasets",
    "conversion": "Conversion",
    "reports": "Reports",
    "deployment": "Deployment",
}
INDEX = """# Python

Written by `python docs/make_api.py`. What `from hf_segkd import ...` gives; the rooms have the rest.

| name | what it is |
|---|---|
"""


def main() -> None:
    write_pages(__doc__, lambda: {DOCS / "api" / f"{name}.md": text for name, text in pages().items()})


def pages() -> dict[str, str]:
    """The text of every page by its name."""
    texts = {room: room_page(room, title) for room, title in ROOMS.items()}
    return {"index": index_page()} | texts


def index_page() -> str:
    """The names of `hf_segkd.__all__` with their first sentences, then the one-call interface itself."""
    rows = []
    for name in sorted(hf_segkd.__all__, key=str.lower):
        module, found = origin(name)
        target = f"{module}.{name}" if isinstance(found, ast.ClassDef | ast.FunctionDef) else module
        rows.append(f"| [`{name}`][{target}] | {first_sentence(found)} |\n")
    return INDEX + "".join(rows) + "\n::: hf_segkd.commands.one_call\n"


def origin(name: str) -> tuple[str, ast.AST]:
    """The module that defines one of the package's names, and the definition."""
    module = hf_segkd._MODULES[name]
    while True:
        tree = ast.parse(source(module).read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
                package = module if source(module).name == "__init__.py" else module.rpartition(".")[0]
                module = f"{package}.{node.module}" if node.level else node.module
                break
            if name in defined(node):
                return module, node
        else:
            raise ValueError(f"{module} does not define {name}.")


def defined(node: ast.AST) -> list[str]:
    """Names that a statement of a module defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def first_sentence(node: ast.AST) -> str:
    """The first paragraph of a docstring as one line."""
    if not isinstance(node, ast.ClassDef | ast.FunctionDef):
        return "All losses by name."
    text = " ".join(ast.get_docstring(node).split("\n\n")[0].split())
    return re.sub(r"\[`~?([\w.]+)`\]", lambda link: f"`{link[1].rpartition('.')[2]}`", text)


def source(module: str) -> Path:
    """The file of a module."""
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def room_page(room: str, title: str) -> str:
    """One entry for each module that has something public to show."""
    package = room if room == "dataset_builders" else f"hf_segkd.{room}"
    modules = [package, *(f"{package}.{path.stem}" for path in sorted(source(package).parent.glob("[!_]*.py")))]
    entries = "".join(f"\n::: {module}\n" for module in modules if is_public(module))
    return f"# {title}: `{package}`\n{entries}"


def is_public(module: str) -> bool:
    """Whether a module defines a public class or function with a docstring."""
    for node in ast.parse(source(module).read_text(encoding="utf-8")).body:
        named = isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
        if named and ast.get_docstring(node):
            return True
    return False


if __name__ == "__main__":
    main()
