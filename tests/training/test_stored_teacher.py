"""Training from a teacher's stored predictions instead of the teacher."""

import json
import shutil
from fractions import Fraction

import pytest
import torch

from helpers.commands import recipe, refusal
from helpers.loss_cases import build, labels_for, named, pair
from hf_segkd.commands import distill
from hf_segkd.data.resizing import Box
from hf_segkd.data.teacher_maps import crop_of, store
from hf_segkd.losses import LOSSES
from hf_segkd.models import SegmentationOutput
from hf_segkd.training.resume import check_same_recipe

pytestmark = pytest.mark.usefixtures("module_without_figures")

ON_LOGITS = {"task": {}, "kd": {}, "cwd_logits": {"type": "cwd", "layer": "logits", "weight": 3.0}, "dist": {}}
ABLE = [name for name in LOSSES if LOSSES[name].teacher_fields({"layer": "logits"}) == ("logits",)]


@pytest.mark.parametrize("name", ABLE)
def test_loss_is_that_of_the_live_teacher_up_to_the_bytes(name):
    """A loss that reads more than distributions, such as cwd, must find the teacher's own logits in the cache."""
    student, teacher = pair(name, scale=3.0)
    size = tuple(teacher.logits.shape[-2:])
    image = (4 * size[0], 4 * size[1])
    kept = []
    for logits in teacher.logits:
        stored = store(logits, image, True, normalized=False)
        kept.append(crop_of(stored, Fraction(1), Box(0, 0, *image), image))
    values = []
    for logits in (teacher.logits, torch.stack(kept)):
        torch.manual_seed(0)
        loss = build(name, layer="logits")
        values.append(named(loss(student, SegmentationOutput(logits=logits), labels_for(name))))
    for term, live in values[0].items():
        assert values[1][term].item() == pytest.approx(live.item(), rel=0.02, abs=2e-3), term


def test_some_losses_read_logits_and_others_cannot():
    """The list above must not be empty because of a slip in what losses say of themselves."""
    assert {"kd", "cwd", "dist", "bpkd", "adversarial"} <= {*ABLE} and not {"task", "dsd"} & {*ABLE}


def losses_of(folder):
    log = json.loads((folder / "training_log.json").read_text())
    return [{key: x for key, x in entry.items() if key.startswith("loss")} for entry in log if "loss" in entry]


def test_run_on_untransformed_images_is_the_live_teachers(tmp_path, teacher):
    """The proof of the whole way: pass, files, workers, batch, losses."""
    same = {"scale_range": [1.0, 1.0], "flip": 0.0, "crop_size": [32, 48], "losses": ON_LOGITS, "learning_rate": 0.01}
    given = recipe(tmp_path, **same, teacher=teacher)
    distill.main([given, "--output_dir", str(tmp_path / "live")])
    distill.main([given, "--output_dir", str(tmp_path / "cached"), "--teacher_cache", str(tmp_path / "cache")])
    live, cached = losses_of(tmp_path / "live"), losses_of(tmp_path / "cached")
    assert len(live) == len(cached) == 4
    for one, other in zip(live, cached, strict=True):
        assert other == pytest.approx(one, rel=0.01)


def test_training_needs_no_teacher_once_the_cache_is_full(tmp_path, teacher):
    """Its memory is what the cache is for; and a cluster's disk need not hold it."""
    shutil.copytree(teacher, tmp_path / "big")
    given = recipe(tmp_path, losses=ON_LOGITS, teacher=str(tmp_path / "big"), dataloader_num_workers=1)
    argv = [given, "--teacher_cache", str(tmp_path / "cache")]
    assert distill.main([*argv, "--cache_only"]) == {"maps": 8}
    shutil.rmtree(tmp_path / "big")
    report = distill.main([*argv, "--output_dir", str(tmp_path / "run")])
    assert report["stored_teacher"] and "teacher" not in report["models"] and report["steps"] == 4
    card = (tmp_path / "run" / "README.md").read_text()
    assert (
        "distilled from `big` with KD, CWD, DIST" in card and "its predictions for the whole training images" in card
    )
    assert "knowledge-distillation" in card and "teacher_cache: " in card


def test_cache_is_left_alone_where_no_loss_needs_a_teacher(tmp_path, teacher, capsys):
    """`hf-segkd benchmark` gives one command line to all methods, also to the baseline."""
    given = recipe(tmp_path, losses={"task": {}}, teacher=teacher)
    report = distill.main([given, "--teacher_cache", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "run")])
    assert "The teacher is not used: no loss needs one." in capsys.readouterr().out
    assert "stored_teacher" not in report and not (tmp_path / "cache").exists()


def test_labels_and_order_may_change_and_images_may_not(tmp_path, teacher, caplog):
    """Whoever labels more images must not pay for the teacher again; whoever replaces one must."""
    caplog.set_level("INFO", "hf_segkd")
    cache = ["--teacher_cache", str(tmp_path / "cache"), "--cache_only", "--teacher", teacher]
    argv = [recipe(tmp_path, losses=ON_LOGITS), *cache]
    distill.main([*argv, "--dataset_config.num_labeled", "2"])
    distill.main([*argv, "--dataset_config.num_labeled", "6"])
    assert caplog.text.count("8 of 8 images are not in it yet") == 1 and caplog.text.count("not in it yet") == 1
    distill.main([*argv, "--dataset_config.num_train", "10"])
    assert "2 of 10 images are not in it yet" in caplog.text
    distill.main([*argv, "--dataset_config.seed", "7"])
    assert "8 of 8 images are not in it yet" in caplog.text.split("2 of 10")[1]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--losses.cwd", "{}"], "A teacher cache holds logits and nothing else, but these losses ask for more: cwd"),
        (["--losses.kd", "null", "--cache_only"], "--cache_only: no loss needs a teacher"),
        (["--teacher_features", "decode_head"], "teacher_features"),
    ],
)
def test_what_a_cache_cannot_do_is_refused_before_anything_is_read(tmp_path, options, message):
    """By name: the pass over all images may be a night's work."""
    given = recipe(tmp_path, losses={"task": {}, "kd": {}}, teacher="nothing/there")
    argv = [given, "--teacher_cache", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "run"), *options]
    assert message in refusal(argv)
    assert not (tmp_path / "cache").exists() and not (tmp_path / "run").exists()
    assert "Give its folder" in refusal([given, "--cache_only"])


def test_resumed_run_keeps_its_cache(tmp_path):
    """Without it the same command would go on with the live teacher: another run."""
    (tmp_path / "recipe.yaml").write_text("teacher: t\nteacher_cache: cache\n")
    check_same_recipe(str(tmp_path), {"teacher": "t", "teacher_cache": "./cache"}, {})
    with pytest.raises(ValueError, match="teacher_cache: was cache, now not set"):
        check_same_recipe(str(tmp_path), {"teacher": "t"}, {"teacher_cache": None})
