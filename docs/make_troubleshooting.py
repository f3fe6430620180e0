"""Write docs/troubleshooting.md: the likeliest messages, provoked one by one, with cause and cure.

python docs/make_troubleshooting.py [--check]

Nothing is trained: every fault is found before the first step, or is what a training would say. Takes about a minute.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

from faults import CALLED, TYPED, Fault, write_folder
from written import write_pages

from hf_segkd import commands

PAGE = Path(__file__).with_name("troubleshooting.md")
# What the Hub answers depends on the network and on the version of its client.
HUB = re.compile(r" \(.*\)\. Looked for", flags=re.DOTALL)
HEADER = """# Troubleshooting

Written by `python docs/make_troubleshooting.py`, which provokes each fault: the messages are what the library says. A
message says what is wrong, what was found, and what to do. Faults while a run trains, and what is left after them:
[Reliability](reliability.md). `HF_SEGKD_TRACEBACK=1` in front of a command shows where an error comes from.

"""


def main() -> None:
    write_pages(__doc__, lambda: {PAGE: render()})


def render() -> str:
    """The whole page; runs in a temporary folder."""
    with working_folder() as folder:
        sections = ["## Before training\n", *(section(fault, folder) for fault in TYPED)]
        sections += ["## While training\n", *(section(fault, folder) for fault in CALLED)]
    return HEADER + "\n".join(sections)


@contextlib.contextmanager
def working_folder() -> Iterator[str]:
    """A folder as a user may have it, as the working directory."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            write_folder(Path(folder))
            yield os.path.realpath(folder)
        finally:
            os.chdir(before)


def section(fault: Fault, folder: str) -> str:
    """One entry of the page."""
    told = fault.provoke() if callable(fault.provoke) else refusal(fault.provoke)
    told = told.replace(folder + "/", "").replace(folder, ".")
    told = HUB.sub(" (...). Looked for", told)
    form = {"width": 100, "subsequent_indent": "  ", "break_on_hyphens": False}
    shown = "\n".join("\n".join(textwrap.wrap(line, **form)) for line in told.splitlines())
    lines = [f"### {fault.title}\n", f"```text\n{shown}\n```\n"]
    return "\n".join([*lines, f"**Cause.** {fault.cause}\n", f"**Cure.** {fault.cure}\n"])


def refusal(line: str) -> str:
    """What a command says before it ends.

    Raises:
        RuntimeError: If it does not refuse.
    """
    program, *words = shlex.split(line)
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
        try:
            commands.main(words)
        except SystemExit as stop:
            if isinstance(stop.code, str):
                return stop.code
            return printed.getvalue().strip().splitlines()[-1]
    raise RuntimeError(f"{line}: was not refused.\n{printed.getvalue()}")


if __name__ == "__main__":
    main()
