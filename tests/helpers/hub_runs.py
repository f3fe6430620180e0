"""Small runs in processes of their own, which is how the Hub's client gets to know another Hub."""

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from helpers.paths import ROOT
from helpers.tiny import RECIPE

# Put in front of a program: it then runs as where our package was never installed.
WITHOUT_PACKAGE = "import sys; sys.modules['hf_segkd'] = sys.modules['dataset_builders'] = None\n"


def recipe(folder: Path, **changes) -> str:
    path = folder / "given.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes}, sort_keys=False))
    return str(path)


def run(argv: list, environment: dict[str, str] | None = None, folder: Path = ROOT) -> subprocess.CompletedProcess:
    """Run `python argv`; stdin is closed, so that a question would be an error."""
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TRANSFORMERS_VERBOSITY": "error"}
    return subprocess.run(
        [sys.executable, *map(str, argv)],
        env={**os.environ, **own, **(environment or {})},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def snippets(readme: str) -> list[str]:
    """The Python blocks of a model card."""
    return re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
