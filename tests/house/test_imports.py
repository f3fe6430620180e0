"""What may import what: the drawing of docs/architecture.md, no cycles, nothing that setup.cfg does not declare."""

import ast
import sys
from configparser import ConfigParser
from graphlib import CycleError, TopologicalSorter

import pytest
from packaging.requirements import Requirement

from helpers.paths import ROOT

# Top to bottom: a room imports only from its own and the rooms after it.
ROOMS = (
    *("commands", "deployment", "reports", "training", "evaluation", "loading", "conversion", "losses"),
    *("dataset_builders", "hub", "console", "recipe", "values", "distributed", "data", "models"),
)
FLAT_FILES = {"__init__", "__main__", "hub", "console", "recipe", "values", "distributed"}
PACKAGES = ("hf_segkd", "dataset_builders", "scripts")
# Import name of what PyPI knows by another name.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "pillow_heif": "pillow-heif",
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "huggingface_hub": "huggingface-hub",
    # The client whose errors huggingface_hub raises: which of the two it brings depends on its version.
    "httpx": "huggingface-hub",
    "httpx2": "huggingface-hub",
}
# Loaded only when its kernels run.
LAZY_MODULES = {"hf_segkd.losses.functional.similarity_triton"}
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_name(path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def optional_imports(tree) -> set[int]:
    """Lines of imports that an `except ImportError` covers, or that stand there."""
    covered = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) and any("ImportError" in ast.dump(handler) for handler in node.handlers):
            inside = [child for part in (*node.body, *node.handlers) for child in ast.walk(part)]
            covered |= {child.lineno for child in inside if isinstance(child, (ast.Import, ast.ImportFrom))}
    return covered


def imported_modules(path, node) -> list[str]:
    """Full names of what one import statement loads; `from package import module` is that module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    source = node.module or ""
    if node.level:
        package = module_name(path).split(".")
        if path.name != "__init__.py":
            package = package[:-1]
        package = package[: len(package) - node.level + 1]
        source = ".".join([*package, *([source] if source else [])])
    names = [f"{source}.{alias.name}" for alias in node.names]
    return [name if name in MODULES else source for name in names]


def imports(path, at_start_only: bool = False) -> list[tuple[str, bool]]:
    """Pairs (module, whether it is imported only when needed) of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    optional = optional_imports(tree)
    found = []
    for node in nodes:
        lazy = node.col_offset > 0
        if at_start_only and lazy:
            continue
        found += [(name, lazy or node.lineno in optional) for name in imported_modules(path, node)]
    return found


def room(module: str) -> str | None:
    parts = module.split(".")
    name = parts[1] if parts[0] == "hf_segkd" and len(parts) > 1 else parts[0]
    return name if name in ROOMS else None


def upward_imports(path) -> list[str]:
    here = room(module_name(path))
    if here is None:
        return []
    allowed = ROOMS[ROOMS.index(here) :]
    return [name for name, _ in imports(path) if room(name) is not None and room(name) not in allowed]


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path))
def test_room_imports_only_from_rooms_below_it(path):
    """An upward import, lazy or not, ties a lower room to what is built on it, and sooner or later closes a circle."""
    assert not upward_imports(path)


def test_every_folder_and_file_of_the_package_has_its_place():
    """A new flat file or folder would escape the order above."""
    children = [path for path in (ROOT / "hf_segkd").iterdir() if path.name != "__pycache__"]
    folders = {path.name for path in children if path.is_dir() and any(path.rglob("*.py"))}
    assert folders == {*ROOMS} - FLAT_FILES - {"dataset_builders"}
    files = {path.name for path in children if path.is_file()}
    assert files == {f"{name}.py" for name in FLAT_FILES} | {"py.typed"}


def test_no_modules_import_each_other_in_a_circle():
    """A circle imports or fails depending on which of its modules comes first."""
    # Only what runs at import: an import in a function cannot fail that way, and the order of rooms holds for it too.
    graph = {
        name: {found for found, _ in imports(path, at_start_only=True) if found in MODULES and found != name}
        for name, path in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def declared() -> tuple[set[str], set[str]]:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")

    def names(text: str) -> set[str]:
        return {Requirement(line).name.lower() for line in text.splitlines() if line.strip()}

    extras = {name for key, text in config["options.extras_require"].items() for name in names(text)}
    return names(config["options"]["install_requires"]), extras


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path))
def test_every_import_from_elsewhere_is_declared(path):
    """What only happens to be installed with something else is gone when that drops it.

    What is imported at the start must be in `install_requires`; in a function, or under `except ImportError`, an extra
    will do.
    """
    required, extras = declared()
    own = set(PACKAGES)
    for name, optional in imports(path):
        top = name.split(".")[0]
        optional = optional or module_name(path) in LAZY_MODULES
        if top in sys.stdlib_module_names or top in own:
            continue
        distribution = DISTRIBUTIONS.get(top, top).lower()
        assert distribution in (required | extras if optional else required), f"{top} is not declared"
