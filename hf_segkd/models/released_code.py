"""The one Python file that a saved model brings along: the files of this folder that it needs, merged.

This file itself stays at home.
"""

import ast
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

from transformers import MODEL_FOR_BACKBONE_MAPPING
from transformers.utils import CONFIG_NAME

from .compat import PreTrainedConfig

MODULE = "modeling_segkd"
OLDEST_TRANSFORMERS = (4, 57)

_HEADER = """\
# SPDX-License-Identifier: Apache-2.0
# The license is that of the code in this file; the model card names that of the weights.
# Written when the model was saved, by merging the files of hf_segkd/models that it needs:
{files}

import transformers

if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < {oldest}:
    raise ImportError(
        f"The code of this model needs transformers {oldest_text} or newer, here is {{transformers.__version__}}. "
        "Install a newer one: pip install --upgrade transformers"
    )

{imports}


"""
# What the pipeline reads; where a later release keeps it elsewhere, nothing is lost but the silence.
_FOOTER = """

# Without this, the pipeline of transformers says that it does not support the model, and then runs it.
try:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
except ImportError:
    pass
else:
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[{config}.model_type] = "{model}"
"""


def released_code(config: PreTrainedConfig | None = None, model: str = "") -> str:
    """Source of the module that loads a model of this library, and its image processor, without this library.

    Args:
        config (`PreTrainedConfig`, *optional*): The model's. The files are those of its class, of its backbone and of
            the backbone that its class has by default, and all that these import. `None`: the image processor alone.
        model (`str`, *optional*): Name of the model's class, given with `config`.

    Raises:
        ValueError: Two of the files give one name to two things, or import in a way that cannot be merged.
    """
    if config is None:
        return _merge(["image_processing"])
    backbones = [vars(item).get("backbone_config") for item in (config, type(config)())]
    roots = [_file(type(item)) for item in (*backbones, config) if _is_ours(type(item))]
    return _merge(["image_processing", *roots]) + _FOOTER.format(config=type(config).__name__, model=model)


def carry_code(cls: type, auto_classes: dict[str, str]) -> None:
    """Make the JSON file of a config or an image processor name the module of its code, and write that beside it.

    transformers would copy the file of the class and its imports: up to twelve, each with a message when it is loaded.

    Args:
        cls (`type`): A config of this library, or its image processor.
        auto_classes (`dict[str, str]`): For each Auto class, the name of the class that it is to load.
    """
    write: Callable[..., None] = cls.to_json_file

    # Not save_pretrained: what that uploads with push_to_hub is what was written while it ran.
    @wraps(write)
    def to_json_file(self: Any, json_file_path: str | Path, **kwargs: Any) -> None:
        self.auto_map = {name: f"{MODULE}.{class_name}" for name, class_name in auto_classes.items()}
        write(self, json_file_path, **kwargs)
        folder = Path(json_file_path).parent
        if isinstance(self, PreTrainedConfig):
            code = released_code(self, auto_classes["AutoModelForSemanticSegmentation"])
        elif _has_code_of_a_model(folder):
            return
        else:
            code = released_code()
        (folder / f"{MODULE}.py").write_text(code, encoding="utf-8")

    cls.to_json_file = to_json_file


def _has_code_of_a_model(folder: Path) -> bool:
    """Whether the folder holds a model of ours with its module, which has the image processor in it too."""
    file = folder / CONFIG_NAME
    if not (file.is_file() and (folder / f"{MODULE}.py").is_file()):
        return False
    classes = json.loads(file.read_text(encoding="utf-8")).get("auto_map", {})
    return classes.get("AutoConfig", "").startswith(f"{MODULE}.")


def _is_ours(cls: type) -> bool:
    return cls.__module__.startswith(f"{__package__}.")


def _file(cls: type) -> str:
    return cls.__module__.rpartition(".")[2]


def _merge(roots: list[str]) -> str:
    sources: dict[str, _Source] = {}
    backbones = {_file(cls) for cls in MODEL_FOR_BACKBONE_MAPPING if _is_ours(cls)}
    for root in roots:
        _collect(root, backbones, sources)
    _check_names(sources)
    imports = {item for source in sources.values() for item in source.imports}
    header = _HEADER.format(
        files=_comment(", ".join(f"{name}.py" for name in sources) + "."),
        imports=_import_lines(imports),
        oldest=OLDEST_TRANSFORMERS,
        oldest_text=".".join(map(str, OLDEST_TRANSFORMERS)),
    )
    return header + "\n\n\n".join(source.text for source in sources.values()) + "\n"


def _collect(name: str, backbones: set[str], sources: dict[str, "_Source"]) -> None:
    """Add a file after all that it imports. A backbone comes by itself only: what names all of them needs none."""
    if name in sources:
        return
    source = _Source(Path(__file__).with_name(f"{name}.py"))
    for sibling in source.siblings:
        if sibling not in backbones:
            _collect(sibling, backbones, sources)
    sources[name] = source


class _Source:
    """One file: the siblings that it imports, its other imports, the names it gives, and all its other lines."""

    def __init__(self, path: Path):
        self.name = path.name
        lines = path.read_text(encoding="utf-8").splitlines()
        tree = ast.parse("\n".join(lines))
        self.siblings: list[str] = []
        self.imports: set[tuple[str, str | None, str | None]] = set()
        self._check_imports(tree)
        title = ast.get_docstring(tree) or ""
        removed = set(range(1, tree.body[0].end_lineno + 1)) if title else set()
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._add_import(node)
                # A comment right above an import is about the import.
                first = node.lineno
                while lines[first - 2].startswith("#"):
                    first -= 1
                removed |= set(range(first, node.end_lineno + 1))
        kept = [line for number, line in enumerate(lines, start=1) if number not in removed]
        body = "\n".join(kept).strip("\n")
        blank_lines = "\n\n\n" if body.startswith(("class", "def", "@")) else "\n\n"
        self.text = _comment(f"{self.name}. {title}") + blank_lines + body
        self.names = set(_names([node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]))

    def _check_imports(self, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                aliases = [item.name for item in node.names if item.asname or item.name == "*"]
                if node not in tree.body or node.level > 1 or not node.module or "." in node.module or aliases:
                    raise ValueError(
                        f"{self.name}, line {node.lineno}: a file that travels with models imports its siblings "
                        "at its start, as `from .file import name`."
                    )

    def _add_import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.Import):
            self.imports |= {(item.name, None, item.asname) for item in node.names}
        elif node.level:
            self.siblings.append(node.module)
        else:
            self.imports |= {(node.module, item.name, item.asname) for item in node.names}


def _comment(text: str) -> str:
    paragraphs = (textwrap.wrap(paragraph, width=117) or [""] for paragraph in text.splitlines())
    return "\n".join(f"# {line}".rstrip() for lines in paragraphs for line in lines)


def _names(body: list[ast.stmt]) -> Iterator[str]:
    """What statements bind, those inside `try`, `if` and `for` included."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (item.asname or item.name for item in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.For):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = (item for target in targets for item in ast.walk(target) if isinstance(item, ast.Name))
            yield from (name.id for name in names if isinstance(name.ctx, ast.Store))  # not of `table["key"] = value`
        if isinstance(node, ast.Try | ast.If | ast.For):
            yield from _names([*node.body, *node.orelse])
        if isinstance(node, ast.Try):
            yield from _names([statement for handler in node.handlers for statement in handler.body])


def _check_names(sources: dict[str, _Source]) -> None:
    """One name must mean one thing: in the merged module, the later would replace the earlier in silence."""
    meanings: dict[str, Any] = {}
    for source in sources.values():
        own = {name: source.name for name in source.names}
        imported = {
            alias or name or module: f"from {module} import {name}" if name else f"import {module}"
            for module, name, alias in source.imports
        }
        for name, meaning in (own | imported).items():
            if meanings.setdefault(name, meaning) != meaning:
                raise ValueError(
                    f"The name {name} has two meanings: {meanings[name]} and {meaning}. The code of a saved model is "
                    "one file, merged from these: rename one of them."
                )


def _import_lines(imports: set[tuple[str, str | None, str | None]]) -> str:
    """Standard library, blank line, the others; `import` before `from`, one line per module."""
    groups: dict[bool, dict[tuple[bool, str], list[str]]] = {True: {}, False: {}}
    for module, name, alias in sorted(imports, key=lambda item: tuple(part or "" for part in item)):
        is_standard = module.partition(".")[0] in sys.stdlib_module_names
        words = f"{name or module} as {alias}" if alias else name or module
        key = (name is not None, module if name else words)
        groups[is_standard].setdefault(key, []).append(words)
    blocks = []
    for group in groups.values():
        lines = []
        for (is_from, module), words in sorted(group.items()):
            lines.append(f"from {module} import {', '.join(words)}" if is_from else f"import {module}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
