"""Text of strangers (class names, ids, recipes) in Markdown: it is shown, and does nothing."""

from __future__ import annotations

import re

# What would end a table's cell, begin HTML or code, emphasize, link, or show a picture from elsewhere.
_ACTIVE = re.compile(r"[\\`*<>|&~$#]|\b_|_\b|(?<=\])\(|:(?=//)|(?<=www)\.", re.IGNORECASE)


def printable(text: str) -> str:
    """Text on one line, without what terminals and fonts would obey: control characters, changes of direction."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())


def plain(text: str) -> str:
    """Text for a table's cell, a heading, a list or a paragraph, also inside HTML."""
    return _ACTIVE.sub(lambda found: f"&#{ord(found[0])};", printable(text))


def code(text: str) -> str:
    """Text as a span of code; what holds backticks is shown as it is."""
    return plain(text) if "`" in text or not printable(text) else f"`{printable(text)}`"


def fence(text: str) -> str:
    """Backticks that begin and end a block of code which holds `text`."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return "`" * max(3, longest + 1)
