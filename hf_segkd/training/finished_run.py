"""Whether a folder holds a finished run: a readable student and its scores."""

from __future__ import annotations

import json
from pathlib import Path

METRICS_FILE = "metrics.json"
CONVERSION_FILE = "conversion.json"  # in place of it, where an original checkpoint was converted
INDEX_FILE = "model.safetensors.index.json"  # of a student in several files
STUDENT_FILE = "model.safetensors"


def missing_of_run(folder: str | Path, scores: str = METRICS_FILE) -> str | None:
    """What a finished run has and this folder has not.

    `metrics.json` is written last, so that a folder without it is of a run that did not end.

    Args:
        folder (`str` or `Path`): `output_dir` of a run.
        scores (`str`, *optional*, defaults to `"metrics.json"`): The file that tells of it.

    Returns:
        `str | None`: The first file that is missing, empty or cut short, and what is wrong with it; `None` for a
        finished run.
    """
    folder = Path(folder)
    for name in ("config.json", scores):
        try:
            whole = isinstance(json.loads((folder / name).read_text(encoding="utf-8")), dict)
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, ValueError):
            whole = False
        if not whole:
            return f"{name} is damaged"
    return _missing_weights(folder)


def _missing_weights(folder: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    names = [STUDENT_FILE]
    if (folder / INDEX_FILE).is_file():
        try:
            index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
            names = sorted(set(index["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{INDEX_FILE} is damaged"
    for name in names:
        try:
            with safe_open(folder / name, framework="np"):  # compares the header with the size of the file
                pass
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, SafetensorError):
            return f"{name} is damaged"
    return None
