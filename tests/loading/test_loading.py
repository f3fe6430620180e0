"""Whatever a user may name as a model, in one call and in whole commands."""

import pytest
import torch
import yaml
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification, pipeline

from dataset_builders import DATASETS
from helpers import golden_models
from helpers.commands import RECIPE, distill, recipe, script
from helpers.tiny import LABELS
from hf_segkd.loading.any_model import load_model

pytestmark = pytest.mark.usefixtures("module_without_figures")

TINY_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "layer_type": "basic"}
BACKBONE = {"model_type": "resnet", **TINY_RESNET}
PHOTO = torch.randint(256, (3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A DeepLabV3-ResNet18 of CIRKD, 11 classes, as its authors' code would save it."""
    case = golden_models.read("cirkd-deeplabv3-resnet18-11", golden_models.OWN)
    path = tmp_path_factory.mktemp("original") / "deeplabv3_resnet18_camvid_best_model.pth"
    torch.save(golden_models.original_state_dict(case), path)
    return path


@pytest.fixture(scope="module")
def converted(checkpoint):
    """The folder that `convert_checkpoint.py` makes of it."""
    folder = checkpoint.parent / "converted"
    script("convert").main([str(checkpoint), str(folder), "--dataset", "camvid"])
    return folder


@torch.no_grad()
def logits(model, processor):
    return model.eval()(**processor(PHOTO, return_tensors="pt")).logits


def test_an_original_checkpoint_serves_as_it_is(checkpoint, converted):
    """The file and the folder made from it are one model, with one idea of its input."""
    model, processor = load_model(str(checkpoint), DATASETS["camvid"].id2label)
    from_folder = load_model(str(converted))
    assert processor.to_dict()["image_mean"] == from_folder[1].to_dict()["image_mean"] and not processor.do_rescale
    # Weights equal bit by bit; kernels may sum in another order where the memory lies differently.
    torch.testing.assert_close(logits(model, processor), logits(*from_folder), rtol=1e-4, atol=1e-3)
    assert model.config.id2label == from_folder[0].config.id2label == DATASETS["camvid"].id2label


def test_a_new_students_backbone_starts_from_a_classifier(tmp_path):
    """Random where ImageNet was asked for costs ten points and shows nowhere."""
    classifier = ResNetForImageClassification(ResNetConfig(**TINY_RESNET))
    classifier.save_pretrained(tmp_path)
    spec = {"model_type": "pspnet", "backbone": BACKBONE, "hidden_size": 8, "backbone_weights": str(tmp_path)}
    model, _ = load_model(spec, LABELS)
    for key, value in classifier.resnet.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[key], value), key


def test_a_model_without_backbone_refuses_weights_for_one(tmp_path):
    """Ignored, the option would look as if it had worked."""
    with pytest.raises(ValueError, match="ESPNetForSemanticSegmentation has no backbone of its own to fill"):
        load_model({"model_type": "espnet", "backbone_weights": str(tmp_path)}, LABELS)


def test_converted_checkpoint_runs_in_transformers_pipeline(converted):
    """What people who never saw this library do with a released model."""
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

    model = AutoModelForSemanticSegmentation.from_pretrained(converted)
    processor = AutoImageProcessor.from_pretrained(converted)
    segment = pipeline("image-segmentation", model=model, image_processor=processor)
    found = segment(Image.fromarray(PHOTO.permute(1, 2, 0).numpy()))
    assert {entry["label"] for entry in found} <= set(DATASETS["camvid"].labels)
    covered = sum((torch.tensor(list(entry["mask"].getdata())) > 0).sum() for entry in found)
    assert covered == 40 * 56


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_converted_checkpoint_distills_and_is_distilled(role, checkpoint, converted, tmp_path, small_camvid):
    """The released research model in one command: as a file for the teacher, as a folder for the student."""
    models = {"teacher": str(checkpoint), "student": {"model_type": "espnet", "use_decoder": False}}
    if role == "student":
        models = {"teacher": str(checkpoint), "student": str(converted)}
    given = {**RECIPE, "dataset": "camvid", "data_dir": str(small_camvid), "student": models["student"]}
    given |= {"losses": {"task": {}, "kd": {}, "cwd": {"layer": "logits"}}, "max_steps": 2, "crop_size": [32, 32]}
    del given["dataset_config"]
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(given))
    argv = [str(tmp_path / "given.yaml"), "--teacher", models["teacher"], "--output_dir", str(tmp_path / "run")]
    report = distill.main(argv)
    assert report["steps"] == 2 and (tmp_path / "run" / "model.safetensors").is_file()


@pytest.fixture
def small_camvid(tmp_path):
    """Four images in the layout of the real dataset."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 4), ("val", 2), ("test", 1)):
        for number in range(count):
            for folder, shape, top in ((split, (3, 40, 56), 256), (f"{split}annot", (1, 40, 56), 12)):
                (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
                pixels = torch.randint(top, shape, dtype=torch.uint8, generator=generator).permute(1, 2, 0)
                picture = Image.fromarray(pixels.squeeze(-1).numpy())
                picture.save(tmp_path / "data" / folder / f"{split}_{number}.png")
    return tmp_path / "data"


def test_teachers_and_students_of_this_library_train_together(tmp_path):
    """PSPNet on MobileNetV3 learns from DeepLabV3 on a ResNet, features included."""
    teacher = {"model_type": "deeplabv3", "backbone": BACKBONE, "hidden_size": 16}
    distill.main([recipe(tmp_path, student=teacher), "--output_dir", str(tmp_path / "teacher")])
    student = {"model_type": "pspnet", "backbone": "mobilenetv3_small", "hidden_size": 8}
    losses = {"task": {}, "kd": {}, "cwd": {"layer": "features"}, "fitnet": {}}
    argv = [recipe(tmp_path, student=student, losses=losses, max_steps=2), "--teacher", str(tmp_path / "teacher")]
    assert distill.main([*argv, "--output_dir", str(tmp_path / "run")])["steps"] == 2


def test_weights_that_are_not_finite_are_refused_by_name_whoever_loads_them(tiny_student, tmp_path):
    """A model full of NaN predicts its first class everywhere, and gets a score for it."""
    with torch.no_grad():
        tiny_student.decode_head.classifier.weight[0] = float("nan")
    tiny_student.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=f"The model at '{tmp_path}' holds weights that are NaN.*decode_head.classifier.weight"
    ):
        load_model(str(tmp_path))
