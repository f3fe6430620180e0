"""Folders for transformers.js: what they hold, and the library itself in Node and in a browser."""

import importlib
import json
import os
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_builders.street_scenes import draw_scene
from helpers.javascript import chromium, node, npm_package, served
from helpers.paths import ROOT
from helpers.tiny import LABELS, TINY
from hf_segkd.evaluation.segmenter import Segmenter
from hf_segkd.loading.any_model import load_model
from hf_segkd.models import SegmentationImageProcessor, default_processor

pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
pytest.importorskip("onnxscript", reason="needs the extra 'onnx'")
from hf_segkd.deployment import transformers_js  # noqa: E402

PICTURES = {f"{height}x{width}.png": (height, width) for height, width in [(64, 64), (97, 131), (120, 57)]}
DTYPES = {"fp32": 1.0, "fp16": 0.98, "q8": 0.9}
SCRIPT = ROOT / "tests" / "helpers" / "transformers_js.mjs"
PAGE = """<script type="module">
import * as library from "/package/dist/transformers.min.js";
import {{ localOnly, segment }} from "/transformers_js.mjs";
localOnly(library.env, "/models/");
library.env.backends.onnx.wasm.wasmPaths = "/runtime/dist/";
window.segment = (model, picture, dtype) => segment(library, model, picture, dtype);
</script>"""


def script():
    return importlib.import_module("hf_segkd.commands.export")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with a student and `js`, its export, and the rows of the table."""
    folder = tmp_path_factory.mktemp("transformers_js")
    torch.manual_seed(0)
    model = load_model(TINY, id2label=LABELS)[0]
    model.save_pretrained(folder / "student")
    default_processor(model.config).save_pretrained(folder / "student")
    argv = [str(folder / "student"), "--layout", "transformers.js", "--precisions", "fp16", "int8_dynamic"]
    rows = script().main([*argv, "--output_dir", str(folder / "js")])
    for name, size in PICTURES.items():
        Image.fromarray(draw_scene("test", 0, *size, seed=0)[0]).save(folder / name)
    return folder, rows


@pytest.mark.slow
def test_folder_has_the_names_that_transformers_js_looks_for(exported):
    """It builds the names itself: a file called otherwise is a 404."""
    folder, rows = exported
    assert {str(path.relative_to(folder / "js")) for path in (folder / "js").rglob("*.*")} == {
        "config.json",
        "preprocessor_config.json",
        "onnx/model.onnx",
        "onnx/model_fp16.onnx",
        "onnx/model_quantized.onnx",
    }
    config = json.loads((folder / "js" / "config.json").read_text())
    assert config["id2label"] == {str(index): name for index, name in LABELS.items()}
    assert [row["name"] for row in rows] == ["fp32", "fp16", "int8_dynamic"] and rows[0]["equal_pixels"] == 1.0


def test_statistics_are_in_the_order_before_the_flip():
    """transformers.js normalizes RGB and flips afterwards; our BGR statistics as they are would swap red and blue."""
    processor = SegmentationImageProcessor(
        do_rescale=False, image_mean=(1.0, 2.0, 3.0), image_std=(4.0, 5.0, 6.0), do_flip_channel_order=True
    )
    written = transformers_js._preprocessing(processor)
    assert written["image_mean"] == [3.0, 2.0, 1.0] and written["image_std"] == [6.0, 5.0, 4.0]
    assert written["do_flip_channel_order"] and not written["do_rescale"] and not written["do_resize"]
    written = transformers_js._preprocessing(SegmentationImageProcessor())
    assert written["image_mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert written["do_rescale"] and written["rescale_factor"] == pytest.approx(1 / 255)


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--precisions", "int8"], "--precisions int8"),
        (["--size", "64", "64"], "--size"),
        (["--output", "logits", "--split", "test"], "--split, --output logits"),
    ],
)
def test_flags_that_the_layout_cannot_follow_are_refused(flags, named, tmp_path, capsys):
    """Ignored, they would leave a folder that is not what was asked for."""
    argv = ["student", "--layout", "transformers.js", "--output_dir", str(tmp_path), "--dataset", "synthetic"]
    with pytest.raises(SystemExit, match="leave out --"):
        script().main(argv if "int8" in flags else [*argv[:-2], *flags])


def test_a_model_that_needs_padded_images_is_refused(monkeypatch, tmp_path):
    """transformers.js would hand it images of any size, and fail on most of them."""
    monkeypatch.setattr(transformers_js, "size_multiple", lambda model: 32)
    model, processor = load_model(TINY, id2label=LABELS)
    with pytest.raises(ValueError, match="multiples of 32 pixels only"):
        transformers_js.write_transformers_js(model, processor, tmp_path)


def check(found, folder, name, least):
    """Compare what JavaScript said of a picture with PyTorch's classes."""
    expected = Segmenter(*load_model(str(folder / "student")))(Image.open(folder / name))
    labels = np.array(found["labels"]).reshape(found["height"], found["width"])
    assert labels.shape == PICTURES[name] == expected.shape
    assert (labels == expected).mean() >= least
    if least == 1:
        assert found["names"] == [LABELS[index] for index in np.unique(expected)]


@pytest.mark.slow
@pytest.mark.parametrize("dtype, least", DTYPES.items())
def test_node_finds_the_classes_of_pytorch(exported, dtype, least):
    """A channel order, mean, std or upsampling that the configs do not carry over would move borders at least."""
    library = npm_package("@huggingface/transformers") / "dist" / "transformers.node.mjs"
    folder = exported[0]
    for name in PICTURES:
        command = [node(), str(SCRIPT), str(library), str(folder), "js", str(folder / name), dtype]
        run = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stderr
        check(json.loads(run.stdout.splitlines()[-1]), folder, name, least)


@pytest.mark.slow
def test_node_needs_no_dtype(exported):
    """By default transformers.js asks for another file on each device; config.json says which one is there."""
    library = npm_package("@huggingface/transformers") / "dist" / "transformers.node.mjs"
    folder = exported[0]
    command = [node(), str(SCRIPT), str(library), str(folder), "js", str(folder / "64x64.png"), ""]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    check(json.loads(run.stdout.splitlines()[-1]), folder, "64x64.png", 1)


@pytest.mark.slow
def test_browser_finds_the_classes_of_pytorch(exported, tmp_path):
    """Another runtime, WebAssembly, and another decoder of pictures than Node's."""
    links = {"package": npm_package("@huggingface/transformers"), "runtime": npm_package("onnxruntime-web")}
    for name, target in {**links, "models": exported[0], "transformers_js.mjs": SCRIPT}.items():
        os.symlink(target.resolve(), tmp_path / name)
    (tmp_path / "index.html").write_text(PAGE.format())
    with chromium() as browser, served(tmp_path) as address:
        tab = browser.new_page()
        tab.goto(address)
        tab.wait_for_function("window.segment !== undefined")
        for dtype, least in {"": 1.0, "fp32": 1.0, "q8": 0.9}.items():
            for name in PICTURES:
                found = tab.evaluate("x => segment('js', ...x)", [f"{address}/models/{name}", dtype or None])
                check(found, exported[0], name, least)
