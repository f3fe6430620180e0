"""Griffe extension: links of Hugging Face docstrings, [`~package.Name`], become links of the site."""

from __future__ import annotations

import re
from typing import Any

import griffe

LINK = re.compile(r"\[`(~?)([\w.]+)`\](?![\[(])")


class DocstringLinks(griffe.Extension):
    """Rewrites the docstring of every object that the site shows."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = LINK.sub(site_link, obj.docstring.value)


def site_link(link: re.Match) -> str:
    """`[`~a.b.Name`]` shows `Name` and leads to a.b.Name, if the site has it; a bare name stays code."""
    short, name = link.groups()
    shown = name.rsplit(".", 1)[-1] if short else name
    if not name.startswith(("hf_segkd.", "dataset_builders.")):
        return f"`{shown}`"
    return f'<autoref identifier="{name}" optional><code>{shown}</code></autoref>'
