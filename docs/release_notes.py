"""Print the notes of a release, its section of CHANGELOG.md.

python docs/release_notes.py 0.1.0
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

CHANGELOG = Path(__file__).resolve().parent.parent / "CHANGELOG.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", help="a version that CHANGELOG.md has a section of")
    version = parser.parse_args().version
    sections = notes(CHANGELOG.read_text(encoding="utf-8"))
    if version not in sections:
        sys.exit(f"CHANGELOG.md has no section {version}. It has: {', '.join(sections)}.")
    print(sections[version])


def notes(changelog: str) -> dict[str, str]:
    """The text of each section by its version."""
    parts = re.split(r"^## (\S+).*$", changelog, flags=re.MULTILINE)[1:]
    return {version: text.strip() for version, text in zip(parts[::2], parts[1::2], strict=True)}


if __name__ == "__main__":
    main()
