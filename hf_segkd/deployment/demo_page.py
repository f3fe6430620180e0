"""A page to try models on: teacher and student side by side on any image, with time and class areas."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hf_segkd.data.pixels import misfit, read_pixels
from hf_segkd.data.raw import Unreadable
from hf_segkd.deployment.label_files import palette_of, upright
from hf_segkd.evaluation.segmenter import BaseSegmenter
from hf_segkd.loading.class_map import placeholders
from hf_segkd.reports.pictures import overlay, visible

_EXTRA = "pip install 'hf-segkd[demo]'"
LONGEST_SIDE = 1024  # pixels; a phone's photo would take a CPU minutes
_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "safetensors", "numpy", "pillow", "gradio")
_RESULT = {"interactive": False, "format": "png", "show_label": False, "buttons": ["download", "fullscreen"]}
_UPLOADS = "20mb"  # largest file that a visitor may send
_KEPT = 3600  # seconds that what visitors sent is kept at most
_PAGE_TITLE = '"""The page of hf_segkd\'s demo."""'
_APP = """{title}

from pathlib import Path

from PIL import Image

from hf_segkd.deployment.demo_page import DemoPage
from hf_segkd.evaluation.segmenter import Segmenter
from hf_segkd.loading.any_model import load_model

MODELS = {models}

pages = DemoPage({{title: Segmenter(*load_model(model)) for title, model in MODELS.items()}})
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


@dataclass(frozen=True)
class Segmented:
    """What the models said of one image: class ids (H, W) and milliseconds, by the model's title."""

    image: Image.Image
    labels: dict[str, np.ndarray]
    milliseconds: dict[str, float]


class DemoPage:
    """Models that share their classes, and the page that shows them side by side.

    Args:
        segmenters (`dict[str, BaseSegmenter]`): By title, in the order shown; one or more. One whose classes have no
            names, as an original checkpoint's, takes those of the others. All take the same images; those of other
            bands than 8-bit RGB are uploaded as files.

    Raises:
        ValueError: No segmenter, or segmenters whose classes or images differ.
    """

    def __init__(self, segmenters: dict[str, BaseSegmenter]):
        if not segmenters:
            raise ValueError("Give at least one model.")
        classes = {title: segmenter.id2label for title, segmenter in segmenters.items()}
        named = [title for title, id2label in classes.items() if not placeholders(list(id2label.values()))]
        first = next(iter(named or classes))
        self.id2label = classes[first]
        for title, id2label in classes.items():
            same = len(id2label) == len(self.id2label) and (title not in named or id2label == self.id2label)
            if not same:
                raise ValueError(
                    f"The models on one page must share their classes: {title} has {len(id2label)} "
                    f"({', '.join(id2label.values())}), {first} has {len(self.id2label)} "
                    f"({', '.join(self.id2label.values())})."
                )
        self.palette = palette_of(self.id2label)
        self.segmenters = segmenters
        self.bands = segmenters[first].bands
        for title, segmenter in segmenters.items():
            if segmenter.bands != self.bands:
                raise ValueError(f"The models on one page must take the same images: {title} and {first} do not.")
            # The first pass allocates, and would be shown as slow.
            channels, dtype = (len(self.bands.names), self.bands.dtype) if self.bands else (3, "uint8")
            segmenter(np.zeros((96, 96, channels), dtype=dtype))

    def segment(self, picture: Image.Image | str) -> Segmented:
        """Run every model on a picture, or on the file of an image of bands, shrunk to [`LONGEST_SIDE`].

        Raises:
            ValueError: A file that cannot be read, or holds other bands.
        """
        pixels, image = self._open(picture)
        labels, milliseconds = {}, {}
        for title, segmenter in self.segmenters.items():
            start = time.perf_counter()
            labels[title] = segmenter(pixels)
            milliseconds[title] = 1000 * (time.perf_counter() - start)
        return Segmented(image, labels, milliseconds)

    def _open(self, picture: Image.Image | str) -> tuple[Image.Image | np.ndarray, Image.Image]:
        """What the models take, and a picture of it; of bands that are too large, each n-th pixel."""
        if self.bands is None:
            image = upright(picture)
            image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC)
            return image, image
        try:
            array = read_pixels(picture)
        except Unreadable as error:
            raise ValueError(f"This file cannot be read: {error}.") from None
        if wrong := misfit(array, self.bands):
            raise ValueError(f"This image {wrong}.")
        step = -(-max(array.shape[:2]) // LONGEST_SIDE)
        array = np.ascontiguousarray(array[::step, ::step])
        return array, visible(array, self.bands.names)

    def overlays(self, result: Segmented, opacity: float) -> list[Image.Image]:
        """The image under each model's colors; `opacity` from 0, the image alone, to 1, the colors alone."""
        return [overlay(result.image, labels, self.palette, opacity) for labels in result.labels.values()]

    def captions(self, result: Segmented) -> list[str]:
        """Title and time of each model, Markdown."""
        return [f"**{title}** · {time:.0f} ms" for title, time in result.milliseconds.items()]

    def summary(self, result: Segmented) -> str:
        """Size of the image and, of two models, on how much of it they agree."""
        width, height = result.image.size
        size = f"{width} × {height} pixels"
        if len(result.labels) != 2:
            return size
        first, second = result.labels.values()
        return f"{size}, the same class on {100 * (first == second).mean():.1f} % of them"

    def table(self, result: Segmented) -> dict[str, Any]:
        """Legend and area of every class that a model found, largest first, as `gradio.Dataframe` takes it."""
        areas = [np.bincount(x.ravel(), minlength=len(self.palette)) / x.size for x in result.labels.values()]
        total = sum(areas)
        found = [index for index in np.argsort(-total) if total[index]]
        plain = [""] * len(areas)
        return {
            "headers": ["class", *(f"{title}, % of pixels" for title in result.labels)],
            "data": [[self.id2label[index], *(round(100 * x[index], 1) for x in areas)] for index in found],
            "metadata": {"styling": [[_swatch(self.palette[index]), *plain] for index in found]},
        }

    def build(self, examples: Sequence[Image.Image] = ()):
        """The Gradio page (`gradio.Blocks`); `launch()` starts it.

        Raises:
            ImportError: Without gradio.
        """
        try:
            import gradio
        except ImportError as error:
            raise ImportError(f"The demo page needs gradio: {_EXTRA}") from error
        titles = list(self.segmenters)

        def show(picture: Image.Image | str | None, opacity: float) -> list:
            if picture is None:
                return [None, "", None, *[None] * len(titles), *titles]
            try:
                result = self.segment(picture)
            except ValueError as error:
                raise gradio.Error(str(error)) from None
            return [
                result,
                self.summary(result),
                self.table(result),
                *self.overlays(result, opacity),
                *self.captions(result),
            ]

        def blend(result: Segmented | None, opacity: float) -> list:
            return [None] * len(titles) if result is None else self.overlays(result, opacity)

        kept = (_KEPT, _KEPT)  # seconds between two looks, and until a file is deleted
        with gradio.Blocks(title=" and ".join(titles), analytics_enabled=False, delete_cache=kept) as page:
            gradio.Markdown(f"# {' and '.join(titles)}\nSegment an image of your own, or one of the examples.")
            result = gradio.State()
            with gradio.Row():
                with gradio.Column(scale=1):
                    if self.bands is None:
                        # As stored: gradio itself would make 16 bits 8.
                        options = {"type": "pil", "image_mode": None, "sources": ["upload", "clipboard"]}
                        picture = gradio.Image(label="Image", height=260, **options)
                    else:
                        picture = gradio.File(type="filepath", label=f"TIFF, .npy or PNG: {self.bands}")
                    if examples and self.bands is None:
                        gradio.Examples([[example] for example in examples], picture, label="Examples")
                    opacity = gradio.Slider(0, 1, 0.5, step=0.05, label="Opacity of the classes")
                with gradio.Column(scale=2):
                    with gradio.Row():
                        pictures, captions = [], []
                        for title in titles:
                            with gradio.Column(min_width=200):
                                captions.append(gradio.Markdown(title))
                                pictures.append(gradio.Image(elem_classes=f"result-{title.lower()}", **_RESULT))
                    summary = gradio.Markdown()
                    # Plain text, not HTML: class names come from a repository that anybody may have written.
                    kinds = ["str", *["number"] * len(titles)]
                    table = gradio.Dataframe(datatype=kinds, interactive=False, show_label=False)
            picture.change(show, [picture, opacity], [result, summary, table, *pictures, *captions])
            opacity.change(blend, [result, opacity], pictures, show_progress="hidden")
        return page


def serve(build: Callable[[], Any], **options: Any) -> None:
    """Build a page and serve it until the process is stopped; what visitors sent is deleted then.

    Args:
        build (`Callable`): Returns the page: [`DemoPage.build`].
        options: For Gradio's `launch`. Larger files than 20 MB are refused.
    """
    # Gradio keeps uploads in a folder that all users of the machine can read, and leaves them there.
    with tempfile.TemporaryDirectory(prefix="hf_segkd_demo_") as folder, _environment("GRADIO_TEMP_DIR", folder):
        handler = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        try:
            build().launch(max_file_size=_UPLOADS, share=False, **options)
        finally:
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


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
        _APP.format(title=_PAGE_TITLE, models=json.dumps(models), uploads=json.dumps(_UPLOADS)), encoding="utf-8"
    )
    readme = _README.format(
        title=json.dumps(student_id.split("/")[1]),
        gradio=versions["gradio"],
        models="\n".join(f"- {json.dumps(model)}" for model in models.values()),
        names=" and ".join(f"`{model}`" for model in models.values()),
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")
    return folder


def _swatch(color: Sequence[int]) -> str:
    """CSS of a cell that shows the color of its class."""
    return "border-left: 1.2em solid rgb({}, {}, {})".format(*color)


def _is_space(folder: Path) -> bool:
    app = folder / "app.py"
    return app.is_file() and app.read_text(encoding="utf-8", errors="replace").startswith(_PAGE_TITLE)


def _installed_versions() -> dict[str, str]:
    try:
        return {name: importlib.metadata.version(name).split("+")[0] for name in _PACKAGES}
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(f"A Space gets the versions installed here, without {error.name}: {_EXTRA}") from error
