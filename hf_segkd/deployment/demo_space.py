"""The files of a Gradio Space: the demo page with all that it needs."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from hf_segkd.deployment.demo_page import EXTRA, UPLOADS

_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "safetensors", "numpy", "pillow", "gradio")
_PAGE_TITLE = '"""The page of hf_segkd\'s demo."""'
_APP = """{title}

from pathlib import Path

from PIL import Image

from hf_segkd.deployment.demo_page import DemoPage
from hf_segkd.evaluation.segmenter import Segmenter
from hf_segkd.loading.any_model import load_model

MODELS = {models}

pages = DemoPage({{title: Segmenter(*load_model(model)) for title, model in MODELS.items()}}, MODELS)
page = pages.build([Image.open(path) for path in sorted(Path("examples").glob("*.png"))])

if __name__ == "__main__":
    page.launch(max_file_size={uploads})
"""
# JSON strings are YAML strings too: an id is data here, whatever it holds.
_README = """---
title: {title}
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
license: apache-2.0
models:
{models}
---

Segment an image with {names}: overlay, time and area of each class.

Made with hf_segkd, whose source is in this repository; `python app.py` runs the page anywhere
with the packages of `requirements.txt`.
"""


def write_space(
    folder: str | Path, student_id: str, teacher_id: str | None = None, examples: Sequence[Image.Image] = ()
) -> Path:
    """Write the files of a Gradio Space: the page of a student, beside its teacher where there is one.

    The folder holds `app.py`, `requirements.txt` with this installation's versions, `README.md`, the examples and the
    source of hf_segkd, so that the Space needs no published package.

    Args:
        folder (`str` or `Path`): Made where it does not exist; an earlier Space in it is replaced.
        student_id, teacher_id (`str`): Hub ids of the models.
        examples (`Sequence[PIL.Image.Image]`, *optional*): Images to pick from, free to be published.

    Returns:
        `Path`: The folder, to be uploaded as it is.

    Raises:
        ValueError: A model that is not given by its Hub id, or a folder that holds other files.
        ImportError: Without gradio.
    """
    models = ({"Teacher": teacher_id} if teacher_id else {}) | {"Student": student_id}
    for model in models.values():
        if model.count("/") != 1 or Path(model).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", model, re.ASCII):
            raise ValueError(f"A Space loads its models from the Hub: {model!r} is no id such as user/name.")
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not _is_space(folder):
        raise ValueError(f"'{folder}' is not empty, and holds no earlier Space of this command. Give another folder.")
    versions = _installed_versions()
    (folder / "examples").mkdir(parents=True, exist_ok=True)
    for index, example in enumerate(examples):
        example.save(folder / "examples" / f"{index}.png")
    source = Path(__file__).parents[1]
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, folder / source.name, ignore=ignored, dirs_exist_ok=True)
    requirements = [f"{name}=={version}" for name, version in versions.items()]
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")
    (folder / "app.py").write_text(
        _APP.format(title=_PAGE_TITLE, models=json.dumps(models), uploads=json.dumps(UPLOADS)), encoding="utf-8"
    )
    readme = _README.format(
        title=json.dumps(student_id.split("/")[1]),
        gradio=versions["gradio"],
        models="\n".join(f"- {json.dumps(model)}" for model in models.values()),
        names=" and ".join(f"`{model}`" for model in models.values()),
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")
    return folder


def _is_space(folder: Path) -> bool:
    app = folder / "app.py"
    return app.is_file() and app.read_text(encoding="utf-8", errors="replace").startswith(_PAGE_TITLE)


def _installed_versions() -> dict[str, str]:
    try:
        return {name: importlib.metadata.version(name).split("+")[0] for name in _PACKAGES}
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(f"A Space gets the versions installed here, without {error.name}: {EXTRA}") from error
