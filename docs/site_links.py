"""Hook of the site: links that lead out of docs/ take the file that they name with them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"\]\(((?:\.\./)+[\w./-]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside docs/ that pages link to, under `repository/`, as text to read or download.

    Raises:
        PluginError: A page links to a file that is not there.
    """
    for page in [*files.documentation_pages()]:
        for link in LINK.findall(page.content_string):
            target = outside(page, link)
            if target is None:
                continue
            if not target.is_file():
                raise PluginError(f"{page.src_uri} links to {link}, which is not there.")
            place = copied(target)
            if files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, content=target.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    def rewritten(link: re.Match) -> str:
        target = outside(page.file, link[1])
        if target is None:
            return link[0]
        up = "../" * page.file.src_uri.count("/")
        return f"]({up}{copied(target)})"

    return LINK.sub(rewritten, markdown)


def outside(page: File, link: str) -> Path | None:
    """The file that a link of a page names, if it lies in the repository but not in docs/."""
    target = ((DOCS / page.src_uri).parent / link).resolve()
    return target if target.is_relative_to(ROOT) and not target.is_relative_to(DOCS) else None


def copied(target: Path) -> str:
    """Where the site holds a file. `.txt` keeps Markdown and Python from becoming pages or programs."""
    name = target.relative_to(ROOT).as_posix()
    return f"repository/{name}" + (".txt" if target.suffix in (".md", ".py") else "")
