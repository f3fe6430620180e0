"""Griffe extension: docstrings in the style of Hugging Face become what mkdocstrings shows.

Links [`~package.Name`] become links of the site; types lose their backticks, and what the signature says anyway.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

LINK = re.compile(r"\[`(~?)([\w.]+)`\](?![\[(])")
# name (`str`, *optional*, defaults to `"features"`):
PARAMETER = re.compile(r"^( +[\w, ()`]*?\()(`.*?`)(, \*optional\*)?(?:, defaults to .*?)?(\):)", re.MULTILINE)
# `torch.Tensor`: under Returns and Raises
RETURNED = re.compile(r"^( +)\[?`~?([^`\n]+)`\]?( of shape [^:\n]*)?:", re.MULTILINE)


class DocstringLinks(griffe.Extension):
    """Rewrites the docstring of every object that the site shows."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            text = PARAMETER.sub(plain_type, obj.docstring.value)
            text = RETURNED.sub(lambda line: f"{line[1]}{line[2]}{line[3] or ''}:", text)
            obj.docstring.value = LINK.sub(site_link, text)


def plain_type(parameter: re.Match) -> str:
    """`name (str, optional):`, as Google writes it."""
    start, kind, optional, end = parameter.groups()
    return start + kind.replace("`", "") + (", optional" if optional else "") + end


def site_link(link: re.Match) -> str:
    """`[`~a.b.Name`]` shows `Name` and leads to a.b.Name, if the site has it; a bare name stays code."""
    short, name = link.groups()
    shown = name.rsplit(".", 1)[-1] if short else name
    if not name.startswith(("hf_segkd.", "dataset_builders.")):
        return f"`{shown}`"
    return f'<autoref identifier="{name}" optional><code>{shown}</code></autoref>'
