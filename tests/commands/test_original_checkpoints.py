"""Every command takes the file of an original checkpoint, as it was published."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import golden_models
from helpers.commands import script
from helpers.tiny import TINY
from hf_segkd.loading.any_model import load_model

# As many classes as the synthetic scenes have not: 11, so that data of one's own is needed.
NAMES = [f"class {index}" for index in range(11)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An ESPNet-C of 11 classes as its authors' code saves it."""
    case = golden_models.read("skd19-espnet-p2q8-11", golden_models.OWN)
    path = tmp_path_factory.mktemp("original") / "espnet.pth"
    torch.save(golden_models.original_state_dict(case), path)
    return str(path)


@pytest.fixture
def photos(tmp_path):
    """Flags of a folder of four labeled images."""
    generator = np.random.default_rng(0)
    for split, indices in (("train", (0, 1)), ("val", (2, 3))):
        for index in indices:
            for kind, shape, top in (("images", (32, 48, 3), 256), ("masks", (32, 48), 11)):
                path = tmp_path / "photos" / kind / split / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(0, top, shape, dtype=np.uint8)).save(path)
    return ["--dataset", "folder", "--data_dir", str(tmp_path / "photos"), "--labels", *NAMES]


def test_evaluate(checkpoint, photos, tmp_path):
    """Its numbers are the claim that a reproduction starts from."""
    argv = [checkpoint, *photos, "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    (report,) = script("evaluate").main(argv).values()
    assert report["images"] == 2 and list(report["per_class_iou"]) == NAMES


def test_predict(checkpoint, tmp_path):
    """Published weights should not need to be converted to be looked at."""
    Image.new("RGB", (48, 32), (90, 120, 60)).save(tmp_path / "photo.png")
    argv = [checkpoint, str(tmp_path / "photo.png"), "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    (path,) = script("predict").main(argv)
    assert Image.open(path).size == (48, 32)


@pytest.mark.slow
def test_profile(checkpoint):
    """The costs of the published teacher stand in the same table as the student's."""
    argv = [checkpoint, "{model_type: espnet, use_decoder: false}", "--size", "32", "48", "--repeats", "1"]
    rows = script("profile").main([*argv, "--device", "cpu"])
    assert len(rows) == 2 and rows[0]["parameters"] == load_model(checkpoint)[0].num_parameters()


def test_features(checkpoint, photos, tmp_path):
    """One panel of the figure may be the original."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    script("features").main([checkpoint, *photos, "--output", str(tmp_path / "a.png"), "--device", "cpu"])
    assert (tmp_path / "a.png").is_file()


@pytest.mark.slow
def test_export(checkpoint, tmp_path):
    """Deploying published weights is one command."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    rows = script("export").main([checkpoint, "--size", "64", "96", "--output_dir", str(tmp_path)])
    assert rows[1]["equal_pixels"] >= 0.9999 and (tmp_path / "model_fp32.onnx").is_file()


def test_demo(checkpoint, tmp_path, monkeypatch):
    """A teacher without class names stands beside a student that has them."""
    from hf_segkd.deployment import demo_page

    model, processor = load_model(TINY, dict(enumerate(NAMES)))
    model.save_pretrained(tmp_path / "student")
    processor.save_pretrained(tmp_path / "student")
    built, launched = [], []

    class Page:
        def launch(self, **options):
            launched.append(options)

    monkeypatch.setattr(demo_page.DemoPage, "build", lambda page, examples: built.append(page) or Page())
    script("demo").main([str(tmp_path / "student"), "--teacher", checkpoint, "--device", "cpu"])
    (page,) = built
    assert list(page.segmenters) == ["Teacher", "Student"] and launched
    assert page.id2label == dict(enumerate(NAMES))
    assert json.dumps(sorted(page.segment(Image.new("RGB", (40, 32))).labels)) == '["Student", "Teacher"]'
