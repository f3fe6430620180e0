"""A folder with a web page that runs a model in the browser, without a server or network."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from hf_segkd.deployment.demo_models import LONGEST_SIDE, DemoModels
from hf_segkd.deployment.onnx_export import export_onnx, size_multiple
from hf_segkd.evaluation.segmenter import BaseSegmenter, Segmenter
from hf_segkd.models import Bands

_PAGE = Path(__file__).parent / "page"
# Of onnxruntime-web: the script that sets `ort`, and what it loads.
_RUNTIMES = {
    "wasm": ("ort.wasm.min.js", "ort-wasm-simd-threaded"),
    "webgpu": ("ort.webgpu.min.js", "ort-wasm-simd-threaded.asyncify"),
}
_README = """---
title: {title}
sdk: static
app_file: index.html
{models}---

Semantic segmentation in the browser: pictures do not leave the device. Open `index.html`, here or from a copy of
this folder; nothing is fetched from elsewhere.

`runtime_wasm.js` and `runtime_webgpu.js` are builds of onnxruntime-web {version}, Copyright (c) Microsoft Corporation,
MIT license; the page was made with hf_segkd.
"""


def write_static_page(
    folder: str | Path,
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    runtime: str | Path,
    title: str,
    teacher: BaseSegmenter | None = None,
    examples: Sequence[Image.Image] = (),
    model_id: str | None = None,
) -> Path:
    """Write the page of a model.

    Pictures up to [`LONGEST_SIDE`] pixels are segmented at their own size, as [`Segmenter`] does with the protocol
    "whole"; larger ones are shrunk first, by the browser.

    Args:
        folder (`str` or `Path`): Made where it does not exist; files of these names are replaced.
        model (`PreTrainedModel`), processor (`BaseImageProcessor`): As
            [`~hf_segkd.loading.any_model.load_model`] returns them.
        runtime (`str` or `Path`): Folder of the npm package onnxruntime-web, of which files are copied.
        title (`str`): Heading of the page.
        teacher (`BaseSegmenter`, *optional*): Segments the examples now; the page shows its stored results.
        examples (`Sequence[PIL.Image.Image]`, *optional*): Pictures to pick from, free to be published.
        model_id (`str`, *optional*): Hub id of the model, linked from the Space that the folder may become.

    Returns:
        `Path`: The folder.

    Raises:
        ValueError: No such package, a model that does not take images of every size, or classes of the teacher that
            are not the model's or more than 256.
    """
    check_runtime(runtime)
    if bands := Bands.of(processor):
        raise ValueError(f"A browser shows 8-bit RGB, this model reads {bands}. Leave --static out.")
    if size_multiple(model) != 1:
        raise ValueError(
            f"{type(model).__name__} takes images of some sizes only, a page shows pictures of any size. "
            "Use the Gradio page: leave --static out."
        )
    models = {"Student": Segmenter(model, processor)} | ({"Teacher": teacher} if teacher else {})
    page = DemoModels(models)
    if teacher and len(page.id2label) > 256:
        raise ValueError(f"Stored results hold 256 classes at most, this teacher has {len(page.id2label)}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for source in _PAGE.iterdir():
        shutil.copyfile(source, folder / source.name)
    for name in _RUNTIMES:
        _write_runtime(Path(runtime) / "dist", name, folder / f"runtime_{name}.js")
    facts = {
        "title": title,
        "classes": [page.id2label[index] for index in sorted(page.id2label)],
        "palette": [list(map(int, color)) for color in page.palette],
        "longestSide": LONGEST_SIDE,
        "examples": [_example(page, picture) for picture in examples],
        "model": _model_base64(model, processor, folder),
    }
    (folder / "model.js").write_text(f"window.segkd = {json.dumps(facts)};\n", encoding="utf-8")
    models = f"models:\n- {json.dumps(model_id)}\n" if model_id else ""
    text = _README.format(title=json.dumps(title), models=models, version=_version(runtime))
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


def check_runtime(runtime: str | Path) -> None:
    """Check that a folder is the npm package onnxruntime-web.

    Raises:
        ValueError: If a file is missing; the message says how to get the package.
    """
    files = [name for script, stem in _RUNTIMES.values() for name in (script, f"{stem}.mjs", f"{stem}.wasm")]
    missing = [name for name in files if not (Path(runtime) / "dist" / name).is_file()]
    if missing or not (Path(runtime) / "package.json").is_file():
        raise ValueError(
            f"The page brings its runtime along, but '{runtime}' is not the npm package onnxruntime-web"
            f"{': it has no dist/' + missing[0] if missing else ''}. Install it in any folder and name it:\n"
            "  npm install onnxruntime-web\n  hf-segkd demo ... --runtime node_modules/onnxruntime-web"
        )


def _version(runtime: str | Path) -> str:
    return json.loads((Path(runtime) / "package.json").read_text(encoding="utf-8"))["version"]


def _write_runtime(dist: Path, name: str, path: Path) -> None:
    script, stem = _RUNTIMES[name]
    files = {"module": f"{stem}.mjs", "binary": f"{stem}.wasm"}
    content = {key: base64.b64encode((dist / file).read_bytes()).decode() for key, file in files.items()}
    code = (dist / script).read_text(encoding="utf-8")
    path.write_text(f"{code}\nwindow.ortFiles = {json.dumps(content)};\n", encoding="utf-8")


def _model_base64(model: PreTrainedModel, processor: BaseImageProcessor, folder: Path) -> str:
    path = export_onnx(model, processor, folder / "model.onnx")
    text = base64.b64encode(path.read_bytes()).decode()
    path.unlink()
    return text


def _example(page: DemoModels, picture: Image.Image) -> dict[str, str]:
    result = page.segment(picture)
    example = {"picture": _data_url(result.image)}
    if "Teacher" in result.labels:
        example["teacher"] = _data_url(Image.fromarray(result.labels["Teacher"].astype(np.uint8)))
    return example


def _data_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
