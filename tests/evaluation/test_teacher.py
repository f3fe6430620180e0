"""Several models and views of an image as one teacher."""

import json

import pytest
import torch
import torch.nn.functional as F

from dataset_builders import open_dataset
from helpers.commands import recipe
from helpers.paths import SHARED
from helpers.tiny import RECIPE, TINY
from hf_segkd.commands import distill, evaluate
from hf_segkd.evaluation.scoring import evaluate as score
from hf_segkd.evaluation.segmenter import Segmenter
from hf_segkd.evaluation.settings import TeacherArguments
from hf_segkd.evaluation.teacher import TeacherDescription, pin_teacher
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.frozen import zero_subnormals
from hf_segkd.losses import LOSSES, check_logits_only
from hf_segkd.models import InputNormalization
from hf_segkd.recipe import dump
from hf_segkd.recipe import parse as parse_recipe
from hf_segkd.training.checks import check_teacher
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.options import ScriptArguments

pytestmark = pytest.mark.usefixtures("module_without_figures")

CLASSES = ("road", "car", "sky")
IMAGE = torch.randint(0, 256, (1, 3, 48, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
BGR = {"do_rescale": False, "image_mean": [104.0, 117.0, 123.0], "image_std": [1.0, 1.0, 1.0]}


def save(folder, names, seed, align_corners=True, decoder=False, **processor):
    """Folder of a tiny model with these classes and its own processor."""
    torch.manual_seed(seed)
    config = {**TINY, "use_decoder": decoder, "align_corners": align_corners, "processor": processor}
    model, processor = load_model(config, id2label=dict(enumerate(names)))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models that differ in classes, their order, stride, normalization, order of channels and upsampling."""
    folder = tmp_path_factory.mktemp("teachers")
    first = save(folder / "first", CLASSES, 1)
    names = ("sky", "truck", "road", "person", "auto")
    second = save(folder / "second", names, 2, False, True, do_flip_channel_order=True, **BGR)
    return first, {"model": second, "weight": 3, "classes": {"car": ["auto", "truck"]}}


def described(teacher, **options):
    return TeacherDescription.from_arguments(TeacherArguments(teacher=teacher, **options))


@torch.no_grad()
def answer(description, images=IMAGE, content=None):
    model, processor = description.load(CLASSES)
    return model.eval()(pixel_values=InputNormalization.from_processor(processor)(images, content)).logits


@torch.no_grad()
def logits_at(folder, size, align_corners, images=IMAGE):
    model, processor = load_model(folder)
    logits = model.eval()(pixel_values=InputNormalization.from_processor(processor)(images)).logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)


def test_two_teachers_are_the_weighted_mean_of_their_probabilities(folders):
    """Classes, strides and normalizations must meet in one grid: a slip in any of them teaches nonsense."""
    first = logits_at(folders[0], (48, 64), True).softmax(dim=1)
    # Of the second's classes, sky, truck, road, person, auto: the person belongs to none.
    second = logits_at(folders[1]["model"], (48, 64), False)[:, [2, 4, 1, 0]].softmax(dim=1)
    second = torch.stack([second[:, 0], second[:, 1] + second[:, 2], second[:, 3]], dim=1)
    expected = (0.25 * first + 0.75 * second).log()
    torch.testing.assert_close(answer(described([*folders], teacher_stride=1)), expected, atol=1e-5, rtol=0)


def test_logits_are_averaged_where_asked(folders):
    """The mean of logits is another teacher: sharper, and dominated by whoever has the larger ones."""
    both = [folders[0], {"model": folders[0], "weight": 1.0}]
    logits = logits_at(folders[0], (48, 64), True)
    found = answer(described(both, teacher_stride=1, teacher_average="logits"))
    torch.testing.assert_close(found, logits, atol=1e-5, rtol=0)


def test_views_are_brought_back_before_they_are_averaged(folders):
    """A mirrored view that is not turned back, or a scaled one on another grid, blurs the teacher."""
    found = answer(described(folders[0], teacher_flip=True, teacher_scales=[1.0, 0.5], teacher_stride=1))
    model, processor = load_model(folders[0])
    image = InputNormalization.from_processor(processor)(IMAGE)
    small = F.interpolate(image, size=(24, 32), mode="bilinear", align_corners=False)
    total = 0
    with torch.no_grad():
        for view in (image, small):
            plain = model.eval()(pixel_values=view).logits
            mirrored = model(pixel_values=view.flip(-1)).logits.flip(-1)
            for logits in (plain, mirrored):
                total = total + F.interpolate(logits, (48, 64), mode="bilinear", align_corners=True).softmax(1) / 4
    torch.testing.assert_close(found, total.log(), atol=1e-5, rtol=0)


def test_windows_cover_the_image(folders):
    """A network that sees one crop at a time answers for the whole image, at its size."""
    found = answer(described(folders[0], teacher_window=[32, 32], teacher_stride=1))
    assert found.shape == (1, 3, 48, 64) and not torch.equal(found, answer(described(folders[0], teacher_stride=1)))


def test_result_is_as_fine_as_the_finest_member(folders):
    """A coarser grid would throw away what the finest one knows; a finer one costs memory for nothing."""
    assert answer(described([folders[0], folders[0]])).shape[-2:] == (6, 8)
    assert answer(described([*folders])).shape[-2:] == (48, 64)
    assert answer(described(folders[0], teacher_scales=[0.5, 1.0, 1.5])).shape[-2:] == (6, 8)


def test_padding_is_each_members_own_mean(folders):
    """Black bars for one and a mean for another would make the corners of crops a thing of their own."""
    content = torch.tensor([[0, 0, 30, 40]])
    model, processor = load_model(folders[0])
    with torch.no_grad():
        padded = InputNormalization.from_processor(processor)(IMAGE, content)
        expected = model.eval()(pixel_values=padded).logits.log_softmax(dim=1)
    twice = described([folders[0], folders[0]])
    torch.testing.assert_close(answer(twice, IMAGE, content), expected, atol=1e-5, rtol=0)


def test_flags_and_recipe_say_the_same(tmp_path, folders):
    """A recipe is the record of a run: what flags describe must come back out of it."""
    flags = ["--dataset", "synthetic", "--student", "{model_type: espnet}", "--output_dir", str(tmp_path / "run")]
    argv = [*flags, "--teacher", "a", "{model: b, weight: 2}", "--teacher_flip", "--teacher_scales", "0.75", "1"]
    (script, _), recipe = parse_recipe((ScriptArguments, DistillationConfig), argv)
    dump(recipe, tmp_path / "recipe.yaml")
    (again, _), _ = parse_recipe((ScriptArguments, DistillationConfig), [str(tmp_path / "recipe.yaml")])
    expected = TeacherDescription.from_arguments(script)
    assert TeacherDescription.from_arguments(again) == expected
    assert [member.weight for member in expected.members] == [1.0, 2] and expected.members[1].flip
    arguments = evaluate.parser().parse_args(["--dataset", "x", "--output_dir", "y", *argv[6:]])
    assert TeacherDescription.from_arguments(arguments) == expected
    (one, _), recipe = parse_recipe((ScriptArguments, DistillationConfig), [*flags, "--teacher", "a"])
    assert one.teacher == recipe["teacher"] == "a"


@pytest.mark.parametrize(
    "given, message",
    [
        ({"teacher": [{"modle": "a"}]}, "Did you mean 'model'"),
        ({"teacher": [{"weight": 1}]}, "needs a model"),
        ({"teacher": [{"model": "a", "weight": -1}]}, "weight must be positive"),
        ({"teacher": []}, "empty list"),
        ({"teacher": ["a", "b"], "teacher_revision": "main"}, "revision: ..."),
        ({"teacher": "a", "teacher_scales": [0.0]}, "scales must be positive"),
        ({"teacher": "a", "teacher_stride": 0}, "teacher_stride"),
        ({"teacher": "a", "teacher_window": [64]}, "crop_size"),
    ],
)
def test_wrong_description_is_refused(given, message):
    """Each of them would teach something else than was meant, or fail after the models were loaded."""
    with pytest.raises(ValueError, match=message):
        TeacherDescription.from_arguments(TeacherArguments(**given)).members[0].protocol(True)


def test_losses_on_features_are_refused_by_name_for_several_teachers():
    """Their channels have nothing in common; found in the first step, it would have cost the loading of all."""
    with pytest.raises(ValueError, match="cwd_x \\(features\\).*kd"):
        check_teacher(described(["a", "b"]), {"task": {}, "kd": {}, "cwd_x": {"type": "cwd"}})
    assert check_teacher(described("a"), {"cwd": {}}) and check_teacher(described(["a", "b"]), {"kd": {}})
    with pytest.raises(ValueError, match="no common features"):
        described(["a", "b"]).load(CLASSES, features="decode_head")


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_says_what_it_reads_of_the_teacher(name):
    """A loss that reads more than it says would fail in the first step of a run on logits."""
    fields = LOSSES[name].teacher_fields({})
    assert (fields == ()) != LOSSES[name].needs_teacher
    if LOSSES[name].needs_teacher and fields != ("features", "logits"):
        check_logits_only({name: {"layer": "logits"}}, "Only logits")


def test_teachers_of_folders_are_recorded_as_they_were_given():
    """Only what the Hub may change needs a commit."""
    arguments = TeacherArguments(teacher=[str(SHARED), {"model": str(SHARED), "weight": 2}])
    recipe = {}
    pin_teacher(arguments, recipe)
    assert arguments.teacher == recipe["teacher"] == [str(SHARED), {"model": str(SHARED), "weight": 2}]


def test_run_learns_from_two_teachers_and_evaluate_scores_what_taught(tmp_path, teacher):
    """The same description goes through both commands; the card names both teachers."""
    given = recipe(tmp_path, losses={"task": {}, "kd": {}}, teacher=[teacher, {"model": teacher, "weight": 2}])
    report = distill.main([given, "--output_dir", str(tmp_path / "run"), "--teacher_flip"])
    data = ["--dataset", "synthetic", "--dataset_config", json.dumps(RECIPE["dataset_config"])]
    argv = ["--teacher", teacher, f"{{model: {teacher}, weight: 2}}", "--teacher_flip", *data]
    scored = evaluate.main([*argv, "--output_dir", str(tmp_path / "scores")])["teacher"]
    assert scored["mean_iou"] == report["models"]["teacher"]["mean_iou"]
    card = (tmp_path / "run" / "README.md").read_text()
    assert "distilled from `run` and 2 x `run`" in card and "knowledge-distillation" in card


CITY = ("ESP_SD+KD+CITY_65.1", "ESP_kd+city+63.2", "esp-c_KD+CITY+SD_64.1", "esp-c_kd+city_62.8")


@pytest.mark.slow
@pytest.mark.parametrize(
    "files, options, expected",
    [
        (CITY[:1], {}, 67.17),
        (CITY[:1], {"teacher_flip": True}, 68.25),
        (CITY[:1], {"teacher_flip": True, "teacher_scales": [0.5, 1.0, 2.0]}, 68.68),
        (CITY, {}, 69.78),
        (CITY, {"teacher_flip": True, "teacher_scales": [0.5, 1.0, 2.0]}, 70.07),
    ],
    ids=["one", "flip", "flip and scales", "four", "four with flip and scales"],
)
def test_released_espnets_score_together_what_was_measured_elsewhere(camvid, files, options, expected):
    """Every third test image from the first, scored at the size of the labels: numbers that another code found."""
    folder = SHARED / "checkpoints"
    if not all((folder / f"{name}.pth").is_file() for name in files):
        pytest.skip("needs the released files beside the repository: ../shared/checkpoints")
    data = open_dataset("camvid", str(camvid))
    images = data.evaluation_set("test")
    description = described([str(folder / f"{name}.pth") for name in files], teacher_stride=1, **options)
    model, processor = description.load(data.spec.labels)
    every_third = torch.utils.data.Subset(images, range(0, len(images), 3))
    model = zero_subnormals(model).to(memory_format=torch.channels_last)  # a fifth faster; only rounding differs
    found = score(Segmenter(model, processor), every_third).scores()["mean_iou"]
    assert len(every_third) == 78 and 100 * found == pytest.approx(expected, abs=0.1)
