"""Words as a teacher, and `hf-segkd label`: masks that a person corrects."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import hf_segkd
from dataset_builders import open_dataset
from helpers import prompt_models
from helpers.commands import distill, script
from helpers.own_photos import write_splits
from helpers.tiny import TINY
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.prompt_teacher import PromptTeacher, load_prompt_teacher
from hf_segkd.loading.students import resolve_student

pytestmark = pytest.mark.usefixtures("module_without_figures")

PROMPTS = prompt_models.PROMPTS
FAST = ["--crop_size", "32", "32", "--max_steps", "2", "--per_device_train_batch_size", "2", "--use_cpu"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("prompts")
    return {kind: prompt_models.save(kind, root / kind) for kind in prompt_models.KINDS}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = write_splits(tmp_path_factory.mktemp("own") / "photos")
    (root / "labels.txt").write_text("other\ncrack\nrust")
    return root


def described(folder, **fields):
    return {"model": folder, "prompts": PROMPTS, "background": "other", **fields}


@pytest.mark.parametrize("kind", prompt_models.KINDS)
@torch.no_grad()
def test_probabilities_are_those_of_the_formula(kind, folders):
    """Written out for one image from what the model itself says of each prompt alone."""
    teacher, processor = load_prompt_teacher(described(folders[kind]))
    images = torch.rand(1, 3, teacher.side, teacher.side, generator=torch.Generator().manual_seed(0))
    found = []
    for ids, mask in zip(teacher.input_ids, teacher.attention_mask, strict=True):
        output = teacher.model(pixel_values=images, input_ids=ids[None], attention_mask=mask[None])
        if kind == "clipseg":
            found.append(output.logits.sigmoid().reshape(output.logits.shape[-2:]))
        else:
            scores = output.pred_logits.sigmoid() * output.presence_logits.sigmoid()
            found.append((scores[0, :, None, None] * output.pred_masks[0].sigmoid()).amax(0))
    crack = torch.maximum(found[0], found[1])
    scores = torch.stack([crack, found[2], 1 - torch.maximum(crack, found[2])])
    wanted = scores / scores.sum(0)
    logits = teacher(pixel_values=images).logits[0]
    torch.testing.assert_close(logits.softmax(0), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits.exp(), wanted, rtol=1e-4, atol=1e-5)
    assert processor.image_mean == [0.1, 0.2, 0.3]
    assert [*teacher.config.id2label.values()] == ["crack", "rust", "other"]


def test_several_prompts_are_combined_by_maximum_or_mean():
    """By hand: 0.2 and 0.6 are 0.6 or 0.4, and the background is what the largest leaves over."""

    def of(combine):
        teacher = PromptTeacher.__new__(PromptTeacher)
        torch.nn.Module.__init__(teacher)
        teacher.sizes, teacher.background, teacher.combine = [2, 1], "other", combine
        return teacher.scores_to_logits(torch.tensor([0.2, 0.6, 0.1]).view(1, 3, 1, 1)).exp().flatten()

    torch.testing.assert_close(of("max"), torch.tensor([0.6, 0.1, 0.4]) / 1.1)
    torch.testing.assert_close(of("mean"), torch.tensor([0.4, 0.1, 0.6]) / 1.1)


@pytest.mark.parametrize("kind", prompt_models.KINDS)
def test_words_teach_a_student_and_the_card_says_so(kind, folders, photos, tmp_path):
    """Classes are matched by name, whatever the order; a reader of the card must know who labeled."""
    teacher = json.dumps(described(folders[kind]))
    argv = ["kd", "--data", str(photos), "--teacher", teacher, "--student", json.dumps(TINY)]
    report = distill.main([*argv, *FAST, "--output_dir", str(tmp_path / "run")])
    assert report["steps"] == 2 and [*report["per_class_iou"]] == ["other", "crack", "rust"]
    card = (tmp_path / "run" / "README.md").read_text()
    assert "labels came from prompts" in card and "crack: crack, road; rust: rust; everything else: other" in card


@pytest.mark.parametrize("kind", prompt_models.KINDS)
def test_words_fill_a_cache_that_teaches_from_the_command_and_from_python(kind, folders, photos, tmp_path, caplog):
    """A pass for each prompt at every step is what nobody can pay: the cache must stand for such a teacher too."""
    caplog.set_level("INFO", "hf_segkd")
    teacher, cache = described(folders[kind]), str(tmp_path / "cache")
    argv = ["kd", "--data", str(photos), "--teacher", json.dumps(teacher), "--student", json.dumps(TINY)]
    report = distill.main([*argv, *FAST, "--teacher_cache", cache, "--output_dir", str(tmp_path / "run")])
    assert report["stored_teacher"] and report["steps"] == 2 and "teacher" not in report["models"]
    card = (tmp_path / "run" / "README.md").read_text()
    assert "labels came from prompts" in card and "computed before" in card
    options = {"crop_size": [32, 32], "max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True}
    data = {"data": str(photos), "method": "kd", "teacher_cache": cache, "output_dir": tmp_path / "again"}
    again = hf_segkd.distill(teacher=teacher, student=TINY, **data, **options)
    assert again.scores["mean_iou"] == report["mean_iou"]
    assert caplog.text.count("8 of 8 images are not in it yet") == 1 and caplog.text.count("not in it yet") == 1


def test_masks_are_written_and_corrected_ones_kept(folders, photos, tmp_path):
    """What a person has corrected is worth more than anything in the folder."""
    out = tmp_path / "labeled"
    argv = [json.dumps(described(folders["clipseg"])), str(photos / "images" / "val"), "--output_dir", str(out)]
    argv += ["--device", "cpu", "--probabilities"]
    paths = script("label").main(argv)
    assert len(paths) == 4 and (out / "labels.txt").read_text().split() == ["crack", "rust", "other"]
    mask = Image.open(paths[0])
    assert mask.mode == "P" and mask.size == (80, 64) and np.asarray(mask).max() < 3
    with np.load(out / "probabilities" / f"{paths[0].stem}.npz") as stored:
        shares = stored["probabilities"]
    chosen = np.take_along_axis(shares, np.asarray(mask)[None], axis=0)[0]
    assert shares.shape == (3, 64, 80) and np.array_equal(chosen, shares.max(axis=0))
    page = (out / "overview.html").read_text()
    assert page.count("<figure>") == 4 and "rust" in page and all(path.stem in page for path in paths)
    Image.fromarray(np.ones((64, 80), dtype=np.uint8)).save(paths[0])
    paths[1].unlink()
    script("label").main(argv)
    assert (np.asarray(Image.open(paths[0])) == 1).all() and paths[1].is_file()
    assert (out / "overview.html").read_text().count("<figure>") == 4


def test_labeled_photos_are_data(folders, photos, tmp_path):
    """After the correction, the folder goes into the next command as it is."""
    out = tmp_path / "labeled"
    argv = [json.dumps(described(folders["clipseg"])), str(photos / "images"), "--output_dir", str(out)]
    script("label").main([*argv, "--device", "cpu", "--min_confidence", "0.34"])
    assert open_dataset("folder", str(out)).unused == []  # the previews are no pictures that somebody forgot
    argv = ["--data", str(out), "--student", json.dumps(TINY), "--output_dir", str(tmp_path / "run"), *FAST]
    assert [*distill.main([*argv, "--validation_fraction", "0.4"])["per_class_iou"]] == ["crack", "rust", "other"]


def test_pixels_that_are_not_sure_stay_unlabeled(folders, photos, tmp_path):
    """A student believes a wrong label as much as a right one."""
    argv = [json.dumps(described(folders["clipseg"])), str(photos / "images" / "val"), "--device", "cpu"]
    paths = script("label").main([*argv, "--output_dir", str(tmp_path), "--min_confidence", "0.999"])
    assert (np.asarray(Image.open(paths[0])) == 255).all()


def test_a_folder_of_other_classes_is_refused(folders, photos, tmp_path):
    """Masks that are kept would change their meaning."""
    (tmp_path / "labels.txt").write_text("dog\ncat\n")
    argv = [json.dumps(described(folders["clipseg"])), str(photos / "images"), "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit, match="masks of other classes .dog, cat., now crack, rust, other"):
        script("label").main([*argv, "--device", "cpu"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"promts": {}}, "no field 'promts'. Did you mean 'prompts'"),
        ({"prompts": ["road"]}, "prompts must be a mapping"),
        ({"prompts": {"road": []}}, "'road' is given as .., expected a prompt"),
        ({"background": "rust"}, "'rust' has prompts of its own"),
        ({"prompts": {"road": "road"}, "background": None}, "One class alone is no choice"),
        ({"combine": "median"}, "combine must be one of max, mean"),
        ({"model": "nowhere"}, "No model with its tokenizer at 'nowhere'"),
    ],
)
def test_what_cannot_be_asked_is_refused(changes, message, folders):
    """A class without a prompt would never be found, and nobody would know why."""
    with pytest.raises(ValueError, match=message):
        load_model(described(folders["clipseg"], **changes))


def test_words_are_no_student(folders):
    """CLIPSeg would be trained as a whole, in silence."""
    with pytest.raises(ValueError, match="cannot be the student"):
        resolve_student(described(folders["clipseg"]))
