"""The stage without labels: a backbone teaches features, then ordinary training starts from them."""

import json

import pytest
import torch
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTModel,
)

from helpers.commands import distill, script
from helpers.own_photos import NAMES, write_splits
from helpers.tiny import LABELS
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.feature_teacher import FeatureTeacher, load_feature_teacher
from hf_segkd.losses import LOSSES

pytestmark = pytest.mark.usefixtures("module_without_figures")

VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
SIZES = {"hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1]}
MOBILE = "{name: mobilenetv3-small, hidden_size: 16}"
FAST = ["--crop_size", "64", "64", "--max_steps", "4", "--per_device_train_batch_size", "2", "--use_cpu"]
# Backbone, stride of its last map, tokens before the patches.
TEACHERS = {
    "dinov3 vit": (lambda: DINOv3ViTModel(DINOv3ViTConfig(**VIT, patch_size=8, num_register_tokens=4)), 8, 5),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**VIT, patch_size=8)), 8, 1),
    "dinov2 with registers": (
        lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**VIT, patch_size=8, num_register_tokens=3)),
        *(8, 4),
    ),
    "vit": (lambda: ViTModel(ViTConfig(**VIT, patch_size=8)), 8, 1),
    "dinov3 convnext": (lambda: DINOv3ConvNextModel(DINOv3ConvNextConfig(**SIZES)), 32, 0),
    "convnext": (lambda: ConvNextModel(ConvNextConfig(**SIZES)), 32, 0),
}


def saved(name, folder):
    torch.manual_seed(0)
    model = TEACHERS[name][0]().eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = write_splits(tmp_path_factory.mktemp("own") / "photos")
    (root / "labels.txt").write_text("\n".join(NAMES))
    return root


@pytest.fixture(scope="module")
def dinov3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dinov3")
    saved("dinov3 vit", folder)
    return str(folder)


@pytest.mark.parametrize("name", TEACHERS)
def test_backbones_give_maps_at_their_stride(name, tmp_path):
    """Every family has its own output class; a sequence taken for a map would be distilled as noise."""
    saved(name, tmp_path)
    stride = TEACHERS[name][1]
    teacher, processor = load_feature_teacher(str(tmp_path), LABELS)
    output = teacher.eval()(pixel_values=torch.rand(2, 3, 32, 64))
    assert output.features.shape == (2, 16, 32 // stride, 64 // stride) and output.logits is None
    assert torch.equal(output.features, output.hidden_states[-1]) and processor.image_mean is not None


@pytest.mark.parametrize("name", ["dinov3 vit", "dinov2", "dinov2 with registers", "vit"])
@torch.no_grad()
def test_tokens_of_classes_and_registers_are_dropped(name, tmp_path):
    """Shifted by one token, every feature would belong to the patch beside its own, and rows would wrap."""
    model = saved(name, tmp_path)
    _, stride, prefix = TEACHERS[name]
    images = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    options = {"interpolate_pos_encoding": True} if name == "vit" else {}
    tokens = model(pixel_values=images, **options).last_hidden_state
    found = load_feature_teacher(str(tmp_path), LABELS)[0].eval()(pixel_values=images).features
    for row in range(32 // stride):
        for column in range(48 // stride):
            wanted = tokens[0, prefix + row * (48 // stride) + column]
            torch.testing.assert_close(found[0, :, row, column], wanted, rtol=1e-5, atol=1e-5)


def test_images_that_are_no_multiple_of_the_patches_are_covered_whole(dinov3):
    """Patches that are cut off would shift the map against the student's."""
    teacher, _ = load_feature_teacher(dinov3, LABELS)
    assert teacher(pixel_values=torch.rand(1, 3, 44, 61)).features.shape[-2:] == (6, 8)


def test_an_output_of_neither_kind_is_refused():
    """Reshaped all the same, it would be noise that trains."""

    class Pooled(ViTModel):
        def forward(self, pixel_values):
            return super().forward(pixel_values, interpolate_pos_encoding=True)

    model = Pooled(ViTConfig(**VIT, patch_size=8))
    teacher = FeatureTeacher(model, LABELS)
    with pytest.raises(ValueError, match="neither a map .* nor class tokens"):
        teacher._as_map(torch.zeros(1, 3, 16), [32, 32])


def test_cosine_of_maps_that_point_the_same_way_is_zero():
    """The norm of a feature must not count: 1 - cos by hand is 0, 1 and 2."""
    from hf_segkd.losses import LossSetup
    from hf_segkd.models import SegmentationOutput

    shapes = {"features": torch.Size((1, 2, 1, 3))}
    loss = LOSSES["cosine"](LossSetup(shapes, 3, shapes))
    student = torch.tensor([[[[1.0, 1.0, 1.0]], [[0.0, 0.0, 0.0]]]])
    teacher = torch.tensor([[[[5.0, 0.0, -2.0]], [[0.0, 3.0, 0.0]]]])
    value = loss(SegmentationOutput(features=student), SegmentationOutput(features=teacher), None)
    torch.testing.assert_close(value, torch.tensor(1.0))


def test_features_without_labels_then_training(dinov3, photos, tmp_path):
    """DINOv3 teaches MobileNetV3 on photos nobody has labeled; what was learned must be where training starts."""
    first = tmp_path / "first"
    argv = ["--teacher", dinov3, "--student", MOBILE, "--images", str(photos / "images"), "--output_dir", str(first)]
    report = script("pretrain").main([*argv, *FAST])
    assert report["images"] == 12 and report["steps"] == 4
    torch.manual_seed(0)
    learned = load_model(str(first))[0].state_dict()
    new = load_model({"model_type": "deeplabv3", "backbone": "mobilenetv3_small", "hidden_size": 16})[0].state_dict()
    moved = [key for key in new if key.startswith("backbone.") and not torch.equal(new[key], learned[key])]
    assert len(moved) > 100 and not list(first.glob("checkpoint-*"))
    argv = ["--data", str(photos), "--student", str(first), "--output_dir", str(tmp_path / "second"), *FAST]
    assert [*distill.main(argv)["per_class_iou"]] == NAMES


def test_both_stages_in_one_command_and_again(dinov3, photos, tmp_path, capsys):
    """The second call, after an interruption of the second stage, must not train the first one again."""
    espnet = "{model_type: espnet, hidden_sizes: [4, 10, 10], depths: [1, 1], use_decoder: false}"
    argv = ["pkd", "--teacher", dinov3, "--student", espnet, "--images", str(photos / "images" / "train" / "*.png")]
    argv += ["--output_dir", str(tmp_path / "first"), *FAST, "--", "--data", str(photos), *FAST]
    report = script("pretrain").main([*argv, "--output_dir", str(tmp_path / "second")])
    assert report["steps"] == 4 and (tmp_path / "second" / "README.md").is_file()
    told = json.loads((tmp_path / "first" / "pretraining.json").read_text())
    assert [*told["losses"]] == ["pkd"] and told["losses"]["pkd"]["layer"] == "hidden_states.-1"
    again = [*argv, "--output_dir", str(tmp_path / "third")]
    again.insert(argv.index("--"), "--resume")
    script("pretrain").main(again)
    assert "first is finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, message",
    [
        (["kd"], "kd reads labels or logits"),
        (["--losses.ifvd", "{}"], "losses.ifvd: ifvd reads labels or logits"),
        (["--teacher", "nowhere"], "No backbone found at 'nowhere'"),
        (["--images", "nothing"], "there is no folder 'nothing'"),
    ],
)
def test_what_this_stage_cannot_do_is_refused(words, message, dinov3, photos, tmp_path):
    """Losses of labels would be zero, and the run would train nothing."""
    argv = ["--teacher", dinov3, "--student", MOBILE, "--images", str(photos), "--output_dir", str(tmp_path / "run")]
    recipes = [word for word in words if not words[0].startswith("--")]
    with pytest.raises(SystemExit) as stop:
        script("pretrain").main([*recipes, *argv, *FAST, *([] if recipes else words)])
    assert message in str(stop.value.code)
