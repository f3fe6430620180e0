"""Files of results, and the names that models go by in them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path


def write_json(content: dict, path: str | Path) -> None:
    """Write `content` as indented JSON in one step, making the folder when needed: never half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2)
    # One line for each row of numbers: a confusion matrix of 150 classes is 150 lines, not 22 500.
    text = re.sub(r"\[[\s\d.,e+-]+\]", lambda row: " ".join(row[0].split()), text)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def check_no_run(*folders: Path) -> None:
    """Refuse folders of training runs: their own `metrics.json` and figures would be replaced.

    Raises:
        ValueError: If one of them holds a run.
    """
    for folder in folders:
        if (folder / "recipe.yaml").is_file():
            raise ValueError(f"'{folder}' holds a training run with scores of its own. Give another --output_dir.")


def model_names(models: Sequence[str]) -> dict[str, str]:
    """A short name for each model, its folder's or repository's, mapped to where it is; longer where two would clash.

    Raises:
        ValueError: If there is no model.
    """
    if not models:
        raise ValueError("No model given. Name a folder or Hub id, or two with --compare.")
    models = list(dict.fromkeys(models))
    # The name of ".." would lead out of the folder that results are written to.
    short = [Path(os.path.abspath(model)).name or "model" for model in models]
    clash = len(set(short)) < len(short)
    return {
        model.strip("/.").replace("/", "_") if clash else name: model
        for name, model in zip(short, models, strict=True)
    }
