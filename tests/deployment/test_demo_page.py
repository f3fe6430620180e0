"""The demo page: what it computes, what it writes for a Space, and a browser that uses it."""

import ast
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from io import BytesIO

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dataset_builders.street_scenes import draw_scene
from helpers.band_images import FOUR, SIZE, pixels
from helpers.commands import script
from helpers.tiny import LABELS, TINY
from hf_segkd.deployment import demo_page
from hf_segkd.deployment.demo_models import LONGEST_SIDE, Segmented
from hf_segkd.deployment.demo_page import DemoPage, serve
from hf_segkd.deployment.demo_space import write_space
from hf_segkd.evaluation.segmenter import Segmenter
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.bands import student_for_bands
from hf_segkd.models import Bands, SegmentationImageProcessor, default_processor


def scene(index, height, width):
    return Image.fromarray(draw_scene("test", index, height, width, seed=0)[0])


PHOTO = scene(0, 60, 80)


def pairs(**models):
    return {title: Segmenter(model, default_processor(model.config)) for title, model in models.items()}


@pytest.fixture
def page(tiny_teacher, tiny_student):
    return DemoPage(pairs(Teacher=tiny_teacher, Student=tiny_student))


def result(*maps):
    """As if the models had said these maps, in 10 and 20 ms."""
    maps = [np.array(labels, dtype=np.uint8) for labels in maps]
    names = ("Teacher", "Student")[: len(maps)]
    image = Image.new("RGB", maps[0].shape[::-1], (100, 100, 100))
    milliseconds = dict(zip(names, (10.0, 20.0), strict=False))
    return Segmented(image, dict(zip(names, maps, strict=True)), milliseconds)


def test_each_model_gets_its_own_map_and_time(page, tiny_teacher, tiny_student):
    """One model's map shown twice would look like a perfect student."""
    shown = page.segment(PHOTO)
    assert list(shown.labels) == list(shown.milliseconds) == ["Teacher", "Student"]
    assert all(labels.shape == (60, 80) for labels in shown.labels.values())
    assert all(time > 0 for time in shown.milliseconds.values())
    for title, model in (("Teacher", tiny_teacher), ("Student", tiny_student)):
        processor = default_processor(model.config)
        with torch.no_grad():
            outputs = model(pixel_values=processor(PHOTO, return_tensors="pt")["pixel_values"])
        (expected,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(60, 80)])
        assert (shown.labels[title] == expected.numpy()).all()
    assert (shown.labels["Teacher"] != shown.labels["Student"]).any()


def test_a_single_model_is_enough(tiny_student):
    """A student without its teacher at hand still has a page."""
    page = DemoPage(pairs(Student=tiny_student))
    shown = page.segment(PHOTO)
    assert len(page.overlays(shown, 0.5)) == 1 and page.summary(shown) == "80 × 60 pixels"


@pytest.mark.parametrize("mode, size", [("RGBA", (70, 50)), ("L", (33, 41)), ("P", (64, 64))])
def test_pictures_of_any_mode_and_size_are_taken(page, mode, size):
    """Screenshots have alpha, scans are gray, and nobody crops to multiples of 8."""
    assert page.segment(Image.new(mode, size)).labels["Student"].shape == size[::-1]


def test_large_photos_are_shrunk(page):
    """A phone's photo would keep a CPU busy for minutes."""
    assert page.segment(Image.new("RGB", (2 * LONGEST_SIDE, 300))).image.size == (LONGEST_SIDE, 150)


def test_opacity_goes_from_the_image_to_the_colors(page):
    """The slider's ends are how one sees where a class border lies in the image."""
    shown = result([[0, 1], [2, 0]])
    assert (np.array(page.overlays(shown, 0)[0]) == 100).all()
    expected = np.array(page.palette, dtype=np.uint8)[shown.labels["Teacher"]]
    assert (np.array(page.overlays(shown, 1)[0]) == expected).all()


def test_table_holds_the_areas_and_colors_of_the_classes_found(page):
    """By hand: three of four pixels and one of four; what nobody predicted has no row."""
    table = page.table(result([[0, 0], [0, 1]], [[0, 0], [1, 1]]))
    assert table["headers"] == ["class", "Teacher, %", "Student, %"]
    assert table["data"] == [[LABELS[0], 75.0, 50.0], [LABELS[1], 25.0, 50.0]]
    for index, row in enumerate(table["metadata"]["styling"]):
        assert "rgb({}, {}, {})".format(*page.palette[index]) in row[0] and row[1:] == ["", ""]


def test_summary_says_where_the_models_agree(page):
    """Three of four pixels; areas alone may be equal where the maps have nothing in common."""
    shown = result([[0, 0], [0, 1]], [[0, 0], [1, 1]])
    assert page.summary(shown) == "2 × 2 pixels, the same class on 75.0 % of them"


def test_difference_shows_where_the_models_disagree(page):
    """By hand: one pixel of four, in the second's color; the others pale, whatever their class."""
    difference = np.asarray(page.difference(result([[0, 0], [0, 1]], [[0, 0], [1, 1]])))
    assert difference[1, 0].tolist() == list(page.palette[1])
    assert (difference[[0, 0, 1], [0, 1, 1]] == 193).all(), "0.4 x 100 + 0.6 x 255"


def test_slider_compares_each_pair(page, tiny_student):
    """The wrong way round, the student's faults would be the teacher's."""
    shown = result([[0, 1], [2, 0]], [[1, 1], [1, 1]])
    assert page.pairs == [("Teacher", "Student"), ("Image", "Teacher"), ("Image", "Student")]
    teacher, student = (np.asarray(picture) for picture in page.overlays(shown, 0.5))
    left, right = page.compared(shown, ("Teacher", "Student"), 0.5)
    assert np.array_equal(left, teacher) and np.array_equal(right, student)
    assert page.compared(shown, ("Image", "Student"), 0.5)[0] is shown.image
    assert DemoPage(pairs(Student=tiny_student)).pairs == [("Image", "Student")]


@pytest.mark.parametrize(
    "times, expected",
    [
        ((30, 10), "Student is 3.0 times as fast as Teacher on this image: 10 ms against 30 ms."),
        ((10, 15), "Student takes 1.5 times as long as Teacher on this image: 15 ms against 10 ms."),
    ],
)
def test_header_says_how_much_faster_the_student_was(page, times, expected):
    """Why one distills; a slower student must not be called faster."""
    shown = Segmented(PHOTO, {}, dict(zip(("Teacher", "Student"), map(float, times), strict=True)))
    assert page.speed(shown) == expected


def test_names_of_models_are_shown_as_plain_text(tiny_student):
    """A folder may be called anything: as Markdown it could load a picture from elsewhere."""
    pytest.importorskip("gradio", reason="needs the extra 'demo'")
    page = DemoPage(pairs(Student=tiny_student), {"Student": "![x](https://evil)"})
    assert page.heading == "Student (![x](https://evil))"
    components = page.build().get_config_file()["components"]
    header = next(block["props"].get("value", "") for block in components if block["type"] == "markdown")
    assert header.startswith("# Student") and "](" not in header and "://" not in header


def test_broken_pictures_get_a_readable_message(page, tmp_path):
    """Gradio opens them before any function of the page is called, and said "Error" alone."""
    gradio = pytest.importorskip("gradio", reason="needs the extra 'demo'")
    blocks = page.build()
    (upload,) = [
        block for block in blocks.blocks.values() if isinstance(block, gradio.Image) and block.label == "Image"
    ]
    assert set(upload.sources) == {"upload", "webcam", "clipboard"}
    (tmp_path / "notes.png").write_text("no picture")
    payload = gradio.data_classes.ImageData(path=str(tmp_path / "notes.png"), orig_name="notes.png")
    with pytest.raises(gradio.Error, match="no picture that can be read"):
        upload.preprocess(payload)
    PHOTO.save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:900])
    (show, *_) = [event.fn for event in blocks.fns.values() if len(event.outputs) > 4]
    with pytest.raises(gradio.Error, match="no picture that can be read"):
        show(Image.open(tmp_path / "cut.jpg"), 0.5, "Teacher | Student")
    filled = show(PHOTO, 0.5, "Teacher | Student")
    assert len(filled) == len(show(None, 0.5, "Teacher | Student")) and filled[1].startswith("Student ")


def test_a_visitors_clip_is_small_and_short(page, tmp_path, monkeypatch):
    """An hour of 4K would keep the page busy for days."""
    pytest.importorskip("av", reason="needs the extra 'video'")
    monkeypatch.setattr(demo_page, "CLIP_SIDE", 64)
    monkeypatch.setattr(demo_page, "CLIP_FRAMES", 2)
    frames = [scene(index, 61, 121) for index in range(3)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=100)
    path, written = page.draw_clip(tmp_path / "clip.gif")
    assert path == str(tmp_path / "classes_clip.gif") and written.startswith("2 frames of 132 x 48")


def test_examples_fit_the_model(tmp_path, monkeypatch):
    """Street scenes for a model of nuclei are nonsense: the picture of its card, or none."""
    demo = script("demo")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert len(demo.examples("anything", dict(LABELS))) == 4
    assert demo.examples(str(tmp_path), {0: "background", 1: "nucleus"}) == []
    (tmp_path / "figures").mkdir()
    PHOTO.save(tmp_path / "figures" / "sample.png")
    (sample,) = demo.examples(str(tmp_path), {0: "background", 1: "nucleus"})
    assert np.array_equal(sample, PHOTO)
    (tmp_path / "figures" / "sample.png").write_text("no picture")
    assert demo.examples(str(tmp_path), {0: "background"}) == demo.examples("nobody/nothing", {0: "x"}) == []


def test_gradio_takes_the_table_as_it_is(page):
    """A key that it does not know would leave the table empty, without an error."""
    gradio = pytest.importorskip("gradio", reason="needs the extra 'demo'")
    table = page.table(result([[0, 0], [0, 1]], [[0, 0], [1, 1]]))
    taken = gradio.Dataframe(interactive=False).postprocess(table)
    assert (taken.headers, taken.data, taken.metadata) == (table["headers"], table["data"], table["metadata"])


def test_captions_hold_the_time_of_each_model(page):
    """Milliseconds, beside the right name."""
    assert page.captions(result([[0]], [[0]])) == ["**Teacher** · 10 ms", "**Student** · 20 ms"]


def test_class_names_are_shown_as_plain_text(page):
    """They come from a Hub repository that anybody may have written: as HTML or Markdown they could run a script."""
    pytest.importorskip("gradio", reason="needs the extra 'demo'")
    blocks = page.build().get_config_file()["components"]
    (table,) = [block for block in blocks if block["type"] == "dataframe"]
    assert table["props"]["datatype"] == ["str", "number", "number"]


def test_models_of_different_classes_are_refused(tiny_student):
    """Side by side they would share colors that mean different things."""
    other = load_model(TINY, id2label={0: "sky", 1: "road"})[0]
    with pytest.raises(ValueError, match=r"must share their classes: Student has 10 .*Teacher has 2 \(sky, road\)"):
        DemoPage(pairs(Teacher=other, Student=tiny_student))
    with pytest.raises(ValueError, match="at least one model"):
        DemoPage({})


def test_page_is_built_with_two_images_and_a_slider(page):
    """A renamed argument of Gradio would show only when the page is opened."""
    pytest.importorskip("gradio", reason="needs the extra 'demo'")
    components = [block["type"] for block in page.build([PHOTO]).get_config_file()["components"]]
    assert components.count("image") == 4 and "imageslider" in components, "two results, where they differ"
    assert "slider" in components and "dataset" in components


def test_page_without_gradio_says_what_to_install(page, monkeypatch):
    """The extra is optional: its absence must not read like a bug."""
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"hf-segkd\[demo\]"):
        page.build()


@pytest.mark.slow
def test_space_runs_from_its_folder_alone(tmp_path):
    """A Space has neither this repository nor a published package: app.py must find all it imports."""
    pytest.importorskip("gradio", reason="needs the extra 'demo'")
    folder = write_space(tmp_path / "space", "user/student", "user/teacher", [PHOTO])
    header = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert header["sdk"] == "gradio" and header["app_file"] == "app.py" and header["title"] == "student"
    assert header["models"] == ["user/teacher", "user/student"]
    requirements = dict(line.split("==") for line in (folder / "requirements.txt").read_text().split())
    assert "torch" in requirements and requirements["gradio"] == header["sdk_version"]
    assert not any("+" in version for version in requirements.values())

    # The models of the Hub stand in as folders at the same relative path.
    for name in ("teacher", "student"):
        model = load_model(TINY, id2label=LABELS)[0]
        model.save_pretrained(folder / "user" / name)
        default_processor(model.config).save_pretrained(folder / "user" / name)
    alone = "import sys; sys.path.insert(0, '.'); sys.modules |= dict.fromkeys(['evaluate', 'onnx'])"
    kinds = "[block['type'] for block in app.page.get_config_file()['components']]"
    check = f"import app, hf_segkd; print(list(app.pages.segmenters), hf_segkd.__file__, {kinds}.count('dataset'))"
    run = subprocess.run(
        [sys.executable, "-I", "-c", f"{alone}; {check}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert f"['Teacher', 'Student'] {folder / 'hf_segkd' / '__init__.py'} 1" in run.stdout


INJECTED = (
    *(
        'x/y"""\nimport os; os.abort()\n"""',
        "x/y'}\nimport os; os.abort()\n#",
        "x/y\nlicense: mine",
        "x/ y",
        "x/{models}",
    ),
    *("x/`y`", "x/"),
)


@pytest.mark.parametrize("model", INJECTED, ids=range(len(INJECTED)))
def test_ids_are_never_code(tmp_path, model):
    """`app.py` held the student's id in its docstring: an id that ends it would run on the Hub's machines."""
    for ids in ((model, None), ("user/student", model)):
        with pytest.raises(ValueError, match="is no id such as user/name"):
            write_space(tmp_path, *ids)
    assert not list(tmp_path.iterdir())


def test_written_app_holds_ids_as_data(tmp_path):
    """Whatever the check of ids lets through: the source is the same but for one literal."""
    pytest.importorskip("gradio", reason="needs the extra 'demo'")
    app = (write_space(tmp_path / "space", "user/student", "user/teacher") / "app.py").read_text()
    (models,) = [ast.literal_eval(line.split(" = ")[1]) for line in app.splitlines() if line.startswith("MODELS")]
    assert models == {"Teacher": "user/teacher", "Student": "user/student"}
    assert app.count("user/") == 2 and 'launch(max_file_size="20mb")' in app
    write_space(tmp_path / "space", "user/other")  # its own may be replaced
    assert "user/other" in (tmp_path / "space" / "app.py").read_text()


def send(url: str, content: bytes) -> int:
    """Upload a file to a page as a browser does; the status of the answer."""
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    request = urllib.request.Request(f"{url}gradio_api/upload", head + content + b"\r\n--x--\r\n")
    request.add_header("Content-Type", "multipart/form-data; boundary=x")
    try:
        return urllib.request.urlopen(request, timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code


def test_uploads_are_limited_and_gone_when_the_page_stops(page, tmp_path, monkeypatch):
    """They were of any size, lay in a folder that all users of the machine can read, and stayed there."""
    pytest.importorskip("gradio", reason="needs the extra 'demo'")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = {}

    def build():
        built = page.build([])
        launch = built.launch

        def launch_and_send(**options):
            _, url, _ = launch(prevent_thread_lock=True, quiet=True, **options)
            found["status"] = [send(url, b"small"), send(url, b"x" * 21_000_000)]
            found["kept"] = [path for path in tmp_path.rglob("*.png") if path.stat().st_size == 5]
            (folder,) = tmp_path.glob("hf_segkd_demo_*")
            found["mode"] = stat.S_IMODE(folder.stat().st_mode)
            built.close()

        built.launch = launch_and_send
        return built

    serve(build, server_name="127.0.0.1")
    assert found["status"][0] == 200 and found["status"][1] >= 400
    assert len(found["kept"]) == 1 and found["mode"] == 0o700
    assert not list(tmp_path.rglob("*.png")) and "GRADIO_TEMP_DIR" not in os.environ


def test_termination_deletes_uploads_too(monkeypatch):
    """Services are stopped by SIGTERM, which ends Python without its last lines."""
    seen, before = [], signal.getsignal(signal.SIGTERM)

    class Page:
        def launch(self, **options):
            seen.append(os.environ["GRADIO_TEMP_DIR"])
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit):
        serve(Page)
    assert not os.path.exists(seen[0]) and signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("model", ["student", "runs/a/student", "/tmp/student"])
def test_space_of_a_local_model_is_refused(tmp_path, model):
    """It would start on the Hub, and fail there."""
    with pytest.raises(ValueError, match="Space loads its models from the Hub"):
        write_space(tmp_path, model)


@pytest.mark.slow
def test_browser_uploads_an_image_and_sees_both_models(page, tmp_path):
    """Everything between the functions and a person: wiring, JavaScript, pictures that arrive.

    Needs `pip install playwright` and a Chromium (`apt-get install chromium`). With HF_SEGKD_SCREENSHOT set to a file
    and HF_SEGKD_DEMO to the folders of a teacher and a student, it shows these and takes their picture.
    """
    pytest.importorskip("gradio", reason="needs the extra 'demo'")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    photo, screenshot = PHOTO, os.environ.get("HF_SEGKD_SCREENSHOT")
    if screenshot:
        models = zip(("Teacher", "Student"), os.environ["HF_SEGKD_DEMO"].split(), strict=True)
        page = DemoPage({name: Segmenter(*load_model(folder)) for name, folder in models})
        photo = scene(2, 192, 256)
    photo.save(tmp_path / "photo.png")
    built = page.build([scene(index, 192, 256) for index in (1, 3, 4)])
    _, url, _ = built.launch(prevent_thread_lock=True, quiet=True)
    try:
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": 1200, "height": 720})
            tab.goto(url)
            upload_and_check(tab, tmp_path / "photo.png", photo.size)
            if screenshot:
                Image.open(BytesIO(tab.screenshot())).quantize(256).save(screenshot, optimize=True)
            move_slider(tab)
            look_at_other_tabs(tab)
            tab.set_viewport_size({"width": 390, "height": 844})
            assert tab.evaluate("document.documentElement.scrollWidth") <= 390
            if screenshot:
                phone = Image.open(BytesIO(tab.screenshot()))
                phone.quantize(256).save(tmp_path / "phone.png", optimize=True)
            browser.close()
    finally:
        built.close()


def upload_and_check(tab, photo, size):
    tab.locator("input[type=file]").first.set_input_files(photo)
    for title in ("Teacher", "Student"):
        tab.get_by_text(re.compile(rf"{title} · \d+ ms")).wait_for(timeout=120_000)
        picture = tab.locator(f".result-{title.lower()} img")
        picture.wait_for(timeout=60_000)
        shown = picture.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])")
        assert shown == [*size]
    tab.get_by_text(f"{size[0]} × {size[1]} pixels, the same class on").wait_for()


def move_slider(tab):
    before = tab.locator(".result-teacher img").get_attribute("src")
    tab.locator("input[type=range]").fill("1")
    tab.wait_for_function(f"document.querySelector('.result-teacher img').src != {before!r}", timeout=60_000)


def look_at_other_tabs(tab):
    """What compares the models, and the message on a file that is no picture."""
    for name, pictures in (("Difference", ".difference img"), ("Slider", ".compared img")):
        tab.get_by_role("tab", name=name).click()
        tab.locator(pictures).first.wait_for(timeout=60_000)
    tab.get_by_label("Image | Student").check()
    tab.locator("button[aria-label='Clear'], button[aria-label='Remove Image']").first.click()
    notes = {"name": "notes.png", "mimeType": "image/png", "buffer": b"no picture"}
    tab.locator("input[type=file]").first.set_input_files(notes)
    tab.get_by_text("This file is no picture that can be read").first.wait_for(timeout=60_000)


def test_bands_are_uploaded_as_files_and_shown_stretched(tmp_path, tiny_student, tiny_teacher):
    """A picture upload would make 12 bits 8 and four bands three before any model sees them."""
    pytest.importorskip("gradio")
    bands = Bands(tuple(FOUR), "uint16", (0, 4095))
    processor = default_processor(tiny_student.config)
    images = [{"pixel_values": torch.rand(4, 8, 8)}]
    student = student_for_bands(tiny_student, processor, bands, images, {}, is_new=True)
    teacher = Segmenter(tiny_teacher, SegmentationImageProcessor(), bands=bands)
    page = DemoPage({"Teacher": teacher, "Student": Segmenter(*student)})
    np.save(tmp_path / "image.npy", pixels(0, 4, "uint16"))
    result = page.segment(str(tmp_path / "image.npy"))
    assert {title: labels.shape for title, labels in result.labels.items()} == {"Teacher": SIZE, "Student": SIZE}
    assert np.asarray(result.image).max() == 255 and page.overlays(result, 0.5)[0].size == SIZE[::-1]
    np.save(tmp_path / "other.npy", pixels(0, 3, "uint16"))
    with pytest.raises(ValueError, match="has 3 bands of uint16, expected 4"):
        page.segment(str(tmp_path / "other.npy"))
    with pytest.raises(ValueError, match="must take the same images"):
        DemoPage({"Teacher": Segmenter(tiny_teacher, SegmentationImageProcessor()), "Student": Segmenter(*student)})
    kinds = [component["type"] for component in page.build().get_config_file()["components"]]
    assert "file" in kinds


def test_a_picture_of_sixteen_bits_is_refused(page):
    """Converted to RGB it would be white, and the classes those of a white picture."""
    with pytest.raises(ValueError, match="16-bit values"):
        page.segment(Image.fromarray(np.full((64, 64), 3000, dtype=np.uint16)))
