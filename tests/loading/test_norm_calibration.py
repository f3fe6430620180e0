"""Folded ImageNet weights: exact in evaluation as loaded, and fit for training once their norms are calibrated."""

import json
import logging

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from helpers import golden_espnetv2, golden_folder
from helpers.commands import distill, recipe
from helpers.tiny import LABELS, TinyScenes
from hf_segkd.conversion.folded import is_unfolded
from hf_segkd.conversion.imagenet import load_backbone_weights
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.norm_calibration import calibrate_folded_norms
from hf_segkd.models import InputNormalization
from hf_segkd.models.mobilenetv2 import MobileNetV2Backbone, MobileNetV2Config

pytestmark = pytest.mark.usefixtures("module_without_figures")

CHANNELS = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
STRIDES = {2: 2, 4: 2, 7: 2, 14: 2}
ALL_STAGES = ["stem", *(f"stage{index}" for index in range(1, 7))]
STUDENT = {"model_type": "deeplabv3", "backbone": "mobilenetv2", "hidden_size": 8}


def layers():
    """Name, shape, stride and groups of each convolution of the file, in order."""
    yield "stem", (32, 3, 3, 3), 2, 1
    in_channels = 32
    for block, channels in enumerate(CHANNELS, start=1):
        width = in_channels if block == 1 else 6 * in_channels
        if block > 1:
            yield f"block{block}.expand", (width, in_channels, 1, 1), 1, 1
        yield f"block{block}.depthwise", (width, 1, 3, 3), STRIDES.get(block, 1), width
        yield f"block{block}.project", (channels, width, 1, 1), 1, 1
        in_channels = channels


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """A made-up file in the layout of the published one, one filter dead, as eleven there are."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape, _, _ in layers():
        fan_in = torch.Size(shape[1:]).numel()
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        weights[f"{name}.bias"] = torch.randn(shape[0], generator=generator)
    weights["stem.weight"][3] = 0
    head = {"head.weight": torch.zeros(1280, 320, 1, 1), "classifier.bias": torch.zeros(1001)}
    path = tmp_path_factory.mktemp("folded") / "folded.safetensors"
    save_file(weights | head, path)
    return path


def plain_maps(weights, x):
    """The maps at strides 2, 4, 8, 16, 16, 32 and 32 of the network as published, with symmetric padding."""
    maps, shortcut = [], None
    for name, shape, stride, groups in layers():
        if name.endswith(("expand", "block1.depthwise")):
            shortcut = x
        padding = shape[-1] // 2
        x = F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, padding, 1, groups)
        x = x if name.endswith("project") else F.relu6(x)
        block = int(name.split(".")[0].removeprefix("block") or 0) if name.startswith("block") else 0
        if name.endswith("project"):
            x = x + shortcut if x.shape == shortcut.shape else x
            if block in (1, 3, 6, 10, 13, 16, 17):
                maps.append(x)
    return maps


def student(path):
    torch.manual_seed(0)
    return load_model(STUDENT | {"backbone_weights": str(path)}, LABELS)


def norms(model):
    return [module for module in model.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]


def pixels(processor, dataset):
    images = torch.stack([item["pixel_values"] for item in dataset])
    return InputNormalization.from_processor(processor)(images)


@torch.no_grad()
def test_folded_file_gives_the_maps_of_its_network(folded):
    """A bias in the wrong layer loads: every norm has one of some length."""
    backbone = MobileNetV2Backbone(MobileNetV2Config(out_features=ALL_STAGES)).eval()
    report = load_backbone_weights(backbone, str(folded))
    assert report.skipped == ["classifier.bias", "head.weight"] and report.missing == []
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    steps = (1, 1, 1, 2, 2, 4, 4)
    expected = plain_maps(load_file(folded), x)
    for value, wanted, step in zip(backbone(x).feature_maps, expected, steps, strict=True):
        assert (value[..., ::step, ::step] - wanted).abs().max() <= 2e-5 * wanted.abs().max()


@pytest.mark.golden
@torch.no_grad()
def test_published_file_gives_its_golden_maps():
    """At 97x161 TensorFlow's padding and ours are one: the maps of the original, layer by layer."""
    path = golden_espnetv2.released("mobilenetv2_imagenet.safetensors")
    backbone = MobileNetV2Backbone(MobileNetV2Config(out_features=ALL_STAGES)).eval()
    load_backbone_weights(backbone, str(path))
    folders = (golden_folder.ESPNETV2, golden_folder.OWN / "espnetv2")
    folder = next(folder for folder in folders if (folder / "mobilenetv2-imagenet.json").is_file())
    cases = json.loads((folder / "mobilenetv2-imagenet.json").read_text())["vectors"]
    for size, padding in (("97x161", "same"), ("96x160", "symmetric")):
        height, width = map(int, size.split("x"))
        image = torch.from_numpy(golden_espnetv2.golden_image.image(cases[size]["salt"], height, width))
        maps = backbone(image[None] / 127.5 - 1).feature_maps
        expected = load_file(folder / f"mobilenetv2-imagenet-{size}.safetensors")
        blocks = {"block1": 1, "block3": 1, "block6": 1, "block10": 2, "block13": 2, "block16": 4, "block17": 4}
        for value, (block, step) in zip(maps, blocks.items(), strict=True):
            found = golden_espnetv2.sample(value[..., ::step, ::step].contiguous())
            wanted, entry = expected[f"{padding}.{block}"].flatten(), cases[size]["tensors"][f"{padding}.{block}"]
            assert (found - wanted).abs().max() <= 1e-4 * entry["absmax"], (size, block)


@torch.no_grad()
def test_calibration_changes_statistics_and_no_output(folded):
    """A start that evaluates otherwise than before is another network."""
    (model, processor), dataset = student(folded), TinyScenes(count=6)
    assert all(is_unfolded(norm) for norm in norms(model)) and len(norms(model)) == 51
    before = model.eval()(pixels(processor, dataset)).logits
    assert calibrate_folded_norms(model.train(), processor, dataset) == 51
    assert all(module.training for module in model.modules())
    after = model.eval()(pixels(processor, dataset)).logits
    assert (after - before).abs().max() <= 1e-4 * before.abs().max()
    assert not any(is_unfolded(norm) for norm in norms(model))
    assert all(norm.running_var.isfinite().all() and norm.weight.isfinite().all() for norm in norms(model))
    assert calibrate_folded_norms(model, processor, dataset) == 0


@torch.no_grad()
def test_training_sees_the_maps_of_evaluation_only_when_calibrated(folded):
    """Batch statistics in place of the identity change the last map by more than its own size."""
    dataset, changes = TinyScenes(count=6), []
    for calibrated in (False, True):
        model, processor = student(folded)
        if calibrated:
            calibrate_folded_norms(model, processor, dataset)
        x = pixels(processor, dataset)
        expected = model.eval().backbone(x).feature_maps[-1]
        found = model.train().backbone(x).feature_maps[-1]
        changes.append(((found - expected).norm() / expected.norm()).item())
    assert changes[0] > 0.5 and changes[1] < 1e-3


def test_calibration_is_repeatable_and_told_in_one_line(folded, caplog):
    """Two processes that start from other statistics train two networks."""
    states = []
    for _ in range(2):
        model, processor = student(folded)
        with caplog.at_level(logging.INFO, logger="hf_segkd.loading.norm_calibration"):
            calibrate_folded_norms(model, processor, TinyScenes(count=5), count=3)
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    lines = [record.message for record in caplog.records if record.name.endswith("norm_calibration")]
    assert lines == ["Calibrated 51 batch norms of folded weights on 3 training images."] * 2


def test_new_and_trained_norms_are_left_alone():
    """Replaced, the statistics of a released network would be those of 32 images."""
    torch.manual_seed(0)
    model, processor = load_model(STUDENT, LABELS)
    assert calibrate_folded_norms(model, processor, TinyScenes(count=2)) == 0


def test_command_calibrates_before_it_trains(folded, tmp_path, caplog):
    """The option is one word in a recipe; nobody would know of a second step to call."""
    given = STUDENT | {"backbone_weights": str(folded)}
    with caplog.at_level(logging.INFO):
        argv = [
            recipe(tmp_path, student=given, max_steps=2, losses={"task": {}}),
            "--output_dir",
            str(tmp_path / "run"),
        ]
        assert distill.main(argv)["steps"] == 2
    assert "Calibrated 51 batch norms of folded weights on 8 training images." in caplog.text
    model, processor = load_model(str(tmp_path / "run"), LABELS)
    assert processor.image_mean == [0.5, 0.5, 0.5] and norms(model)[0].num_batches_tracked == 2
