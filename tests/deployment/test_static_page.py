"""The static page: what its folder holds, and a browser that opens it as a file."""

import importlib
import io
import json
import os
import re
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dataset_builders.street_scenes import draw_scene
from helpers.javascript import chromium, npm_package
from helpers.tiny import LABELS, TINY
from hf_segkd.evaluation.segmenter import Segmenter
from hf_segkd.loading.any_model import load_model
from hf_segkd.models import default_processor

pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
pytest.importorskip("onnxscript", reason="needs the extra 'onnx'")
from hf_segkd.deployment import static_page  # noqa: E402

SIZES = (64, 64), (97, 131), (120, 57)
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


def scene(index, height, width):
    return Image.fromarray(draw_scene("test", index, height, width, seed=0)[0])


def fake_runtime(folder):
    """A folder that looks like the npm package."""
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text('{"version": "1.2.3"}')
    for script, stem in static_page._RUNTIMES.values():
        (folder / "dist" / script).write_text(f"// {script}")
        (folder / "dist" / f"{stem}.mjs").write_text(f"// {stem}")
        (folder / "dist" / f"{stem}.wasm").write_bytes(b"\0asm")
    return folder


def no_export(model, processor, path):
    path.write_bytes(b"in place of a model")
    return path


@pytest.fixture(scope="module")
def models():
    """A student and a teacher of the same classes."""
    pairs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = load_model(TINY, id2label=LABELS)[0].eval()
        pairs.append((model, default_processor(model.config)))
    return pairs


@pytest.fixture(scope="module")
def written(models, tmp_path_factory):
    """The page beside a runtime that is none, of a file that is no model: browsers load the real one."""
    folder = tmp_path_factory.mktemp("static")
    student, teacher = models
    runtime = fake_runtime(folder / "runtime")
    examples = [scene(1, 40, 56), scene(2, 48, 33)]
    options = {"teacher": Segmenter(*teacher), "examples": examples, "model_id": "user/student"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(static_page, "export_onnx", no_export)
        return static_page.write_static_page(folder / "page", *student, runtime, 'a "student": #1', **options)


def facts_of(folder):
    return json.loads((folder / "model.js").read_text().removeprefix("window.segkd = ").rstrip(";\n"))


def picture_of(address):
    with urllib.request.urlopen(address) as file:
        return Image.open(io.BytesIO(file.read()))


def test_folder_holds_all_that_the_page_loads(written):
    """A script from elsewhere would be missing without a network, and would see every picture with one."""
    names = {path.name for path in written.iterdir()}
    assert names == {"index.html", "demo.js", "model.js", "README.md", "runtime_wasm.js", "runtime_webgpu.js"}
    page = (written / "index.html").read_text()
    assert set(re.findall(r'src="([^"]+)"', page)) <= names
    assert "http" not in page + (written / "demo.js").read_text()
    assert "ort.wasm.min.js" in (written / "runtime_wasm.js").read_text()
    assert "ort.webgpu.min.js" in (written / "runtime_webgpu.js").read_text()


def test_teachers_results_are_stored_as_class_ids(written, models):
    """Stored in colors or as a lossy picture, its classes could not be compared with the student's."""
    teacher = Segmenter(*models[1])
    stored = facts_of(written)["examples"]
    assert len(stored) == 2
    for example, picture in zip(stored, [scene(1, 40, 56), scene(2, 48, 33)], strict=True):
        assert (np.array(picture_of(example["picture"])) == np.array(picture)).all()
        assert (np.array(picture_of(example["teacher"])) == teacher(picture)).all()


def test_page_knows_names_and_colors_of_the_classes(written):
    """Without them the legend would be numbers."""
    facts = facts_of(written)
    assert facts["classes"] == list(LABELS.values()) and len(facts["palette"]) == len(LABELS)
    assert facts["title"] == 'a "student": #1'


def test_folder_is_a_static_space(written):
    """The Hub reads these lines; a title with a colon or a quote must not break them."""
    header = yaml.safe_load((written / "README.md").read_text().split("---")[1])
    assert header["sdk"] == "static" and header["app_file"] == "index.html"
    assert header["title"] == 'a "student": #1' and header["models"] == ["user/student"]
    assert "onnxruntime-web 1.2.3" in (written / "README.md").read_text()


def test_a_missing_runtime_says_where_it_comes_from(models, tmp_path):
    """The package is not ours to ship: the message must hold the command that gets it."""
    with pytest.raises(ValueError, match="npm install onnxruntime-web"):
        static_page.write_static_page(tmp_path / "page", *models[0], tmp_path, "student")
    runtime = fake_runtime(tmp_path / "runtime")
    (runtime / "dist" / "ort.wasm.min.js").unlink()
    with pytest.raises(ValueError, match="it has no dist/ort.wasm.min.js"):
        static_page.check_runtime(runtime)


def test_models_that_do_not_fit_a_page_are_refused(models, tmp_path, monkeypatch):
    """They would fail in the browser, on the first picture of another size or the first example."""
    runtime = fake_runtime(tmp_path / "runtime")
    other = Segmenter(*load_model({**TINY, "use_decoder": False}, id2label={0: "sky", 1: "road"}))
    with pytest.raises(ValueError, match="must share their classes"):
        static_page.write_static_page(tmp_path / "page", *models[0], runtime, "student", other)
    monkeypatch.setattr(static_page, "size_multiple", lambda model: 32)
    with pytest.raises(ValueError, match="leave --static out"):
        static_page.write_static_page(tmp_path / "page", *models[0], runtime, "student")


def test_push_checks_the_runtime_before_it_uploads(tmp_path, monkeypatch):
    """Found out at the end, the model would be on the Hub and its page not."""
    push = importlib.import_module("hf_segkd.commands.push")
    monkeypatch.setattr(push, "check_folder", lambda folder: None)
    monkeypatch.setattr("hf_segkd.hub.open_repository", lambda *_: pytest.fail("reached the Hub"))
    with pytest.raises(SystemExit, match="npm install onnxruntime-web"):
        push.main([str(tmp_path), "user/student", "--space", "static", "--runtime", str(tmp_path)])


def test_push_uploads_the_page_of_the_student(models, tmp_path, monkeypatch):
    """The page of another model, or one without its name, would be on the Hub under the student's."""
    push = importlib.import_module("hf_segkd.commands.push")
    model, processor = models[0]
    model.save_pretrained(tmp_path / "student")
    processor.save_pretrained(tmp_path / "student")
    uploaded = {}

    def upload(folder, repo_id, private, token):
        uploaded.update(facts=facts_of(Path(folder)), repo_id=repo_id)
        return "address"

    monkeypatch.setattr(static_page, "export_onnx", no_export)
    monkeypatch.setattr("hf_segkd.hub.push_static_space", upload)
    runtime = fake_runtime(tmp_path / "runtime")
    arguments = SimpleNamespace(folder=str(tmp_path / "student"), runtime=str(runtime), private=False)
    assert push.push_page(arguments, "user/student", None) == "address"
    assert uploaded["repo_id"] == uploaded["facts"]["title"] == "user/student"
    assert uploaded["facts"]["classes"] == list(LABELS.values())


def status(tab, pattern, timeout=120_000):
    """Wait until the page says something like `pattern`."""
    tab.wait_for_function(
        "pattern => new RegExp(pattern).test(document.getElementById('status').textContent)",
        arg=pattern,
        timeout=timeout,
    )


def shown_labels(tab):
    found = tab.evaluate("({width: shown.pixels.width, height: shown.pixels.height, labels: [...shown.labels]})")
    return np.array(found["labels"]).reshape(found["height"], found["width"])


@pytest.mark.slow
def test_browser_gives_pythons_label_maps_from_a_file(models, tmp_path):
    """No server, no network: decoding, channel order, normalization and upsampling all happen in the page.

    With HF_SEGKD_SCREENSHOT set to a folder and HF_SEGKD_DEMO to the folders of a teacher and a student, it shows
    these and takes their pictures.
    """
    runtime, (student, teacher) = npm_package("onnxruntime-web"), models
    screenshots, side = os.environ.get("HF_SEGKD_SCREENSHOT"), (40, 56)
    if screenshots:
        teacher, student = (load_model(folder) for folder in os.environ["HF_SEGKD_DEMO"].split())
        side = (192, 256)
    page = static_page.write_static_page(
        tmp_path / "page", *student, runtime, "student", Segmenter(*teacher), [scene(2, *side), scene(3, *side)]
    )
    segmenter = Segmenter(*student)
    with chromium(*CAMERA) as browser:
        context = browser.new_context(viewport={"width": 1100, "height": 760}, offline=True)
        tab = context.new_page()
        requests = []
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto((page / "index.html").as_uri())
        status(tab, r"\d ms · \d+ × \d+ pixels · the teacher's class on [\d.]+ % of them")
        assert (shown_labels(tab) == segmenter(scene(2, *side))).all()
        assert (np.array(tab.evaluate("[...shown.teacher]")) == Segmenter(*teacher)(scene(2, *side)).ravel()).all()
        if screenshots:
            take_pictures(tab, screenshots)
        for size in SIZES:
            scene(0, *size).save(tmp_path / f"{size}.png")
            tab.locator("#file").set_input_files(tmp_path / f"{size}.png")
            status(tab, rf"\d ms · {size[1]} × {size[0]} pixels$")
            expected = segmenter(scene(0, *size))
            assert (shown_labels(tab) == expected).all()
            assert tab.locator("#legend tr").count() == 1 + len(np.unique(expected))
        assert {url.split(":")[0] for url in requests} <= {"file", "data", "blob"}


def take_pictures(tab, folder):
    for name, width, height in (("static_desktop", 1100, 760), ("static_phone", 390, 844)):
        tab.set_viewport_size({"width": width, "height": height})
        picture = Image.open(io.BytesIO(tab.screenshot()))
        picture.quantize(64).save(Path(folder) / f"{name}.png", optimize=True)


@pytest.mark.slow
def test_browser_takes_a_picture_of_48_megapixels(models, tmp_path):
    """A camera's picture must neither stop the page nor leave it with the result of the one before."""
    page = static_page.write_static_page(tmp_path / "page", *models[0], npm_package("onnxruntime-web"), "student")
    scene(0, 600, 800).resize((8000, 6000)).save(tmp_path / "camera.jpg", quality=95)
    with chromium() as browser:
        tab = browser.new_page(viewport={"width": 390, "height": 844})
        tab.goto((page / "index.html").as_uri())
        status(tab, "Open a picture")
        tab.locator("#file").set_input_files(tmp_path / "camera.jpg")
        status(tab, r"^Reading the picture|\d ms · 1024 × 768 pixels$", timeout=5_000)
        status(tab, r"\d ms · 1024 × 768 pixels$")
        assert tab.locator("#legend tr").count() > 1


@pytest.mark.slow
def test_browser_shows_the_webcam_and_says_what_fails(models, tmp_path):
    """A phone's camera is what such a page is for; a text file is what somebody will try."""
    page = static_page.write_static_page(tmp_path / "page", *models[0], npm_package("onnxruntime-web"), "student")
    (tmp_path / "notes.png").write_text("no picture")
    with chromium(*CAMERA) as browser:
        tab = browser.new_page(viewport={"width": 390, "height": 844})
        tab.goto((page / "index.html").as_uri())
        status(tab, "Open a picture")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        tab.locator("#webcam").click()
        status(tab, r"\d ms · \d+ × \d+ pixels$")
        tab.locator("#webcam").click()
        tab.locator("#file").set_input_files(tmp_path / "notes.png")
        status(tab, "This file is no picture that the browser can read")
