"""Images of many bands, from `prepare` to an exported file, with a teacher of RGB."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from helpers.band_images import FOUR, THIRTEEN, data_flags, pixels, training_flags, write_set
from helpers.commands import refusal, script
from hf_segkd.commands import distill
from hf_segkd.commands.one_call import FinishedRun
from hf_segkd.data.pixels import read_pixels
from hf_segkd.deployment.onnx_segmenter import OnnxSegmenter
from hf_segkd.loading.any_model import load_model
from hf_segkd.training import faults

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("module_without_figures")]
RANGE = ["--pixel_range", "0", "4095"]
SEGFORMER = {"model_type": "segformer", "hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4}


@pytest.fixture(scope="module")
def rgb_teacher(tmp_path_factory):
    """Trained on 8-bit pictures of the same classes."""
    folder = tmp_path_factory.mktemp("teacher")
    data = write_set(folder / "data", 3, "uint8", "png")
    distill.main(["baseline", "--dataset", "folder", "--data_dir", str(data), *training_flags(folder / "run")])
    return str(folder / "run")


@pytest.mark.parametrize(
    "names", [pytest.param(FOUR, id="4 bands"), pytest.param(THIRTEEN, id="13 bands", marks=pytest.mark.slow)]
)
def test_bands_are_prepared_distilled_scored_predicted_and_exported(names, tmp_path, rgb_teacher, monkeypatch, capsys):
    """Each command opens images by itself, and any of them may fall back to 8 bits or to three channels."""
    monkeypatch.chdir(tmp_path)
    data = write_set(tmp_path / "data", len(names))
    flags = [*data_flags(data, names), *RANGE]
    script("prepare").main(["folder", *flags[2:], "--output", "prepared"])
    shown = capsys.readouterr().out
    assert f"{len(names)} bands of uint16 (" in shown and "0 to 4095 as 0 to 255" in shown
    assert f"{len(names)} x uint16 6" in shown, "what each image holds"

    distill.main(["kd_cwd", "--dataset", "prepared", "--teacher", rgb_teacher, *training_flags("student")])
    assert "mean_iou" in json.loads((tmp_path / "student" / "metrics.json").read_text())["models"]["teacher"]
    reports = script("evaluate").main(["student", rgb_teacher, *flags, "--output_dir", "scores", "--device", "cpu"])
    trained = json.loads((tmp_path / "student" / "metrics.json").read_text())
    assert next(iter(reports.values()))["mean_iou"] == trained["mean_iou"], "folder and parquet hold the same"

    written = script("predict").main(
        ["student", str(data / "images" / "val"), "--format", "ids", "--output_dir", "maps", "--device", "cpu"]
    )
    processor = AutoImageProcessor.from_pretrained("student", trust_remote_code=True)
    model = AutoModelForSemanticSegmentation.from_pretrained("student").eval()
    array = pixels(6, len(names), "uint16")
    with torch.no_grad():
        outputs = model(**processor(array, return_tensors="pt"))
    expected = processor.post_process_semantic_segmentation(outputs, [array.shape[:2]])[0].numpy()
    assert np.array_equal(np.array(Image.open(written[0])), expected)

    script("export").main(["student", *flags, "--precisions", "fp32", "int8", "--output_dir", "files"])
    exported = OnnxSegmenter("files/model_fp32.onnx")
    assert exported.metadata["bands"] == names and exported.metadata["pixel_range"] == [0, 4095]
    assert exported.metadata["image_mean"] == pytest.approx(processor.image_mean)
    assert np.array_equal(exported(array), expected)
    card = (tmp_path / "student" / "README.md").read_text()
    assert all(f"| {name} |" in card for name in names) and "np.load" in card and "of uint16" in card
    script("predict").main(["student", *flags, "--format", "overlay", "--output_dir", "overlays", "--device", "cpu"])


def test_a_run_on_bands_resumes_to_the_same_bits(tmp_path):
    """Mean and deviation of the bands are measured again at the start: they must come out as they were."""
    data = write_set(tmp_path / "data", 4)

    def run(name, *more):
        steps = ["--max_steps", "4", "--eval_steps", "2", "--save_steps", "2", "--keep_checkpoints", *more]
        distill.main(["baseline", *data_flags(data, FOUR), *training_flags(tmp_path / name), *steps])
        return load_file(tmp_path / name / "checkpoint-4" / "model.safetensors")

    whole = run("whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    shutil.copy2(tmp_path / "whole" / "recipe.yaml", tmp_path / "resumed")
    resumed = run("resumed", "--resume")
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    processors = [(tmp_path / name / "preprocessor_config.json").read_text() for name in ("whole", "resumed")]
    assert processors[0] == processors[1]


def test_a_native_student_of_bands_and_its_processor_load_from_its_folder(tmp_path, rgb_teacher):
    """SegFormer's own processor knows three channels: ours must lie in the folder instead, with its code."""
    data = write_set(tmp_path / "data", 4, "uint8", "tif")
    fields = [f"--student.{name}={value}" for name, value in SEGFORMER.items()]
    out = tmp_path / "run"
    flags = [flag for flag in training_flags(out) if not flag.startswith("--student")]
    jitter = ["--jitter", "{brightness: 0.1, contrast: 0.2}", "--cache_dir", str(tmp_path / "cache")]
    distill.main(["kd", *data_flags(data, FOUR), "--teacher", rgb_teacher, *flags, *fields, *jitter])
    processor = AutoImageProcessor.from_pretrained(out, trust_remote_code=True)
    model = AutoModelForSemanticSegmentation.from_pretrained(out)
    assert processor.bands == FOUR and model.config.num_channels == 4
    assert load_model(str(out))[1].bands == FOUR, "where hf_segkd is installed, without trusting code"
    with torch.no_grad():
        model(**processor(pixels(0, 4, "uint8"), return_tensors="pt"))
    image = next((data / "images").rglob("*.tif"))
    run = FinishedRun.open(out)
    assert np.array_equal(run.predict(image), run.predict(read_pixels(image)))
    assert faults._decodes(str(image)), "a whole image of bands must not be blamed for a damaged mask"


def test_a_student_of_rgb_is_widened_and_one_of_bands_trained_on(tmp_path, rgb_teacher):
    """The bands of a folder that is trained on keep mean and std, for which its weights were made."""
    data = write_set(tmp_path / "data", 1, "uint16", "png")
    flags = data_flags(data, ["thermal"])
    distill.main(["baseline", *flags, *training_flags(tmp_path / "first", rgb_teacher)])
    more = write_set(tmp_path / "more", 1, "uint16", "png", count=5)
    distill.main(
        ["baseline", *data_flags(more, ["thermal"]), *training_flags(tmp_path / "second", str(tmp_path / "first"))]
    )
    first, second = (json.loads((tmp_path / x / "preprocessor_config.json").read_text()) for x in ("first", "second"))
    assert first["image_mean"] == second["image_mean"] and len(first["image_mean"]) == 1


def test_what_bands_cannot_do_is_refused_before_training(tmp_path, rgb_teacher):
    """Each of these would train on something else than was meant, or fail after the data was prepared."""
    data = write_set(tmp_path / "data", 4)
    flags = [*data_flags(data, FOUR), *training_flags(tmp_path / "run"), "--overwrite"]
    assert "Give --pixel_range" in refusal(["kd", *flags, "--teacher", rgb_teacher])
    assert "saturation and hue are of RGB" in refusal(["baseline", *flags, "--jitter", "{hue: 0.1}"])
    assert "repeats what the originals do to 8-bit" in refusal(["baseline", *flags, "--interpolation", "opencv"])
    unnamed = [flag for flag in flags if flag not in ("--bands", *FOUR)]
    assert "4 bands of uint16: --bands red green blue nir" in refusal(["baseline", *unnamed])


@pytest.mark.parametrize("views", [[], ["--teacher_flip"]], ids=["one teacher", "two views"])
def test_a_stored_teacher_of_rgb_reads_its_bands(views, tmp_path, rgb_teacher):
    """The cache normalizes by itself: four bands would not fit the teacher, or 4095 would be its 255 nowhere."""
    data = write_set(tmp_path / "data", 4)
    flags = [*data_flags(data, FOUR), *RANGE, "--teacher", rgb_teacher, *views]
    cache = ["--teacher_cache", str(tmp_path / "cache")]
    logs = []
    for name, more in (("live", []), ("stored", cache)):
        distill.main(["kd", *flags, *more, *training_flags(tmp_path / name), "--flip", "0", "--scale_range", "1", "1"])
        log = json.loads((tmp_path / name / "training_log.json").read_text())
        logs.append([entry["loss_kd"] for entry in log if "loss_kd" in entry])
    # A crop of 32 pixels sees less around it than the whole image of 40 x 48, which the cache was made of.
    assert logs[0] == pytest.approx(logs[1], rel=0.3)
    assert "uint16" in (tmp_path / "cache" / "teacher.json").read_text()
