"""`--unlabeled`: a dataset with labels and any pool of images without, under a live teacher and a stored one."""

import json

import pytest
import torch
import torch.nn.functional as F

from helpers.commands import recipe, refusal
from helpers.loss_cases import build, labels_for, pair
from helpers.own_photos import picture, save
from hf_segkd.commands import distill

pytestmark = pytest.mark.usefixtures("module_without_figures")


@pytest.fixture
def photos(tmp_path):
    for index in range(6):
        save(tmp_path / "photos" / f"{index}.png", picture(index, (48 + 4 * index, 40)))
    return str(tmp_path / "photos")


@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
def test_unlabeled_images_teach_and_are_counted(tmp_path, teacher, photos, cached):
    """Card and metrics must say what a result is owed to; the stored teacher must know these images too."""
    given = recipe(tmp_path, losses={"task": {}, "kd": {}}, teacher=teacher, max_steps=8, num_train_epochs=1)
    argv = [given, "--unlabeled", photos, "--unlabeled_ratio", "1", "--output_dir", str(tmp_path / "run")]
    cache = ["--teacher_cache", str(tmp_path / "cache")] if cached else []
    report = distill.main([*argv, *cache])
    assert report["training_images"] == {"dataset": 8, "unlabeled": 6}
    assert report["trained_on"]["images"] == 16 and report["trained_on"]["labeled_images"] == 8
    card = (tmp_path / "run" / "README.md").read_text()
    assert "training images: 8 of the dataset and 6 without labels; of 16 crops 8 had labels" in card
    log = json.loads((tmp_path / "run" / "training_log.json").read_text())
    assert all(entry["loss_task"] > 0 and entry["loss_kd"] > 0 for entry in log if "loss_task" in entry)


@pytest.mark.parametrize(
    "losses, options, message",
    [
        ({"task": {}}, ["--unlabeled", "photos"], "these images teach nothing"),
        ({"task": {}, "kd": {}}, ["--unlabeled_ratio", "2"], "Give them: --unlabeled"),
        ({"task": {}, "kd": {}}, ["--unlabeled", "nowhere/at/all"], "there is no folder"),
    ],
)
def test_what_would_teach_nothing_is_refused(tmp_path, teacher, losses, options, message):
    """Each would train, and on something else than was meant."""
    given = recipe(tmp_path, losses=losses, teacher=teacher)
    assert message in refusal([given, "--output_dir", str(tmp_path / "run"), *options])


def test_confidence_weighs_positions_by_the_teacher():
    """A teacher that guesses on foreign images should not teach its guesses as loudly as what it knows."""
    student, teacher = pair("kd", scale=2.0)
    labels = labels_for("kd")
    target = teacher.logits.softmax(1)
    kl = F.kl_div(student.logits.log_softmax(1), target, reduction="none").sum(1)
    sure = (target.amax(1) >= 0.8).float()
    assert 0 < sure.mean() < 1
    found = build("kd", confidence=0.8)(student, teacher, labels)
    torch.testing.assert_close(found, (sure * kl).mean())
    entropy = -(target * target.log()).sum(1) / torch.tensor(float(target.shape[1])).log()
    found = build("kd", confidence="entropy")(student, teacher, labels)
    torch.testing.assert_close(found, ((1 - entropy) * kl).mean(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(build("kd")(student, teacher, labels), kl.mean())


@pytest.mark.parametrize("confidence", [0.0, 1.5, "high"])
def test_wrong_confidence_is_refused(confidence):
    """A threshold above 1 would leave every position out, without a sign but a loss of 0."""
    with pytest.raises(ValueError, match="confidence"):
        build("kd", confidence=confidence)
