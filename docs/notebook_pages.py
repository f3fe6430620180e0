"""Hook of the site: a notebook becomes a page of its text and code, with a link to the notebook itself."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files


def on_files(files: Files, config: Any) -> Files:
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = PurePosixPath(notebook.src_uri).with_suffix(".md")
        files.append(File.generated(config, str(page), content=markdown(notebook.content_string, notebook.name)))
    return files


def markdown(content: str, name: str) -> str:
    """The cells of a notebook as Markdown."""
    parts = []
    for cell in json.loads(content)["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    title, rest = parts[0].split("\n", 1)
    return "\n\n".join([title, f"[Download the notebook]({name}.ipynb)", rest, *parts[1:]]) + "\n"
