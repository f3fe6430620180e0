"""What the commands of docs/ that write pages share."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


def write_pages(description: str, render: Callable[[], dict[Path, str]]) -> None:
    """Write pages, or, with `--check`, end with an error if a page is not what would be written."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if a page is not what would be written")
    check = parser.parse_args().check
    for page, text in render().items():
        if not check:
            page.parent.mkdir(exist_ok=True)
            page.write_text(text, encoding="utf-8")
        elif not page.is_file() or page.read_text(encoding="utf-8") != text:
            sys.exit(f"{page.name} is out of date: run make docs-pages")
