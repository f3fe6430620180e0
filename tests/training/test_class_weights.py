"""Class weights by formula: the published numbers, from the training split, written into the recipe."""

import json
import math

import numpy as np
import pytest
import yaml

from dataset_builders import open_dataset
from helpers.own_photos import save
from hf_segkd.commands import distill
from hf_segkd.training.class_weights import class_weights, count_pixels, resolve_class_weights

pytestmark = pytest.mark.usefixtures("module_without_figures")

FAST = ["--crop_size", "32", "32", "--per_device_train_batch_size", "2", "--max_steps", "1", "--eval_steps", "1"]
FAST += ["--save_steps", "1", "--use_cpu", "--student.model_type", "espnet", "--student.use_decoder", "false"]
FAST += ["--student.hidden_sizes", "[4, 10, 10]", "--student.depths", "[1, 1]"]


@pytest.fixture
def photos(tmp_path):
    """Two training masks of 32 x 32: half 0 and half 1; all 0 but a quarter ignored. The validation mask is all 1."""
    masks = {"train/a": np.zeros((32, 32), np.uint8), "train/b": np.zeros((32, 32), np.uint8)}
    masks["val/c"] = np.ones((32, 32), np.uint8)
    masks["train/a"][16:] = 1
    masks["train/b"][:8] = 255
    for name, mask in masks.items():
        save(tmp_path / "data" / "masks" / f"{name}.png", mask)
        photo = np.random.default_rng(ord(name[-1])).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        save(tmp_path / "data" / "images" / f"{name}.png", photo)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("inverse_frequency", [1792 / (2 * 1280), 1792 / (2 * 512)]),
        # f = 1280 / 1792 and 512 / 1024; their median is the mean of the two.
        ("median_frequency", [(1280 / 1792 + 0.5) / 2 / (1280 / 1792), (1280 / 1792 + 0.5) / 2 / 0.5]),
        ("enet", [1 / math.log(1.02 + 1280 / 1792), 1 / math.log(1.02 + 512 / 1792)]),
    ],
)
def test_weights_of_a_case_done_by_hand(photos, formula, expected):
    """Ignored pixels, or those of the validation split, would change every one of them."""
    pixels, beside = count_pixels(open_dataset("folder", str(photos), labels=["a", "b"]))
    assert pixels.tolist() == [1280, 512] and beside.tolist() == [1792, 1024]
    assert class_weights(formula, pixels, beside) == pytest.approx(expected, rel=1e-5)


def test_drawn_scenes_are_counted_too():
    """They have no files to count in."""
    dataset = open_dataset("synthetic", num_train=2, num_validation=1, num_test=1, height=32, width=48)
    pixels, _ = count_pixels(dataset)
    masks = [np.asarray(row["annotation"]) for row in dataset.split("train")]
    assert pixels.tolist() == [sum(int((mask == index).sum()) for mask in masks) for index in range(len(pixels))]


def test_a_class_without_a_pixel_has_no_frequency(photos):
    """Its weight would be infinite, the loss NaN at the first pixel of it."""
    dataset = open_dataset("folder", str(photos), labels=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"classes \[2\] have no pixel .* 'inverse_frequency' would be infinite"):
        resolve_class_weights({"task": {"class_weights": "inverse_frequency"}}, dataset)
    found = resolve_class_weights({"task": {"class_weights": "enet"}}, dataset)
    assert found["task"]["class_weights"][2] == pytest.approx(1 / math.log(1.02), rel=1e-5)
    with pytest.raises(ValueError, match="Did you mean 'enet'|one of inverse_frequency"):
        resolve_class_weights({"task": {"class_weights": "enett"}}, dataset)


def test_the_recipe_holds_the_numbers_that_were_used(photos, tmp_path, caplog):
    """With the formula alone, another training split would silently be another loss."""
    flags = ["--dataset", "folder", "--data_dir", str(photos), "--labels", "a", "b", *FAST]
    flags += ["--losses.task.class_weights", "enet", "--losses.dice.weight", "0.5"]
    distill.main([*flags, "--output_dir", str(tmp_path / "run")])
    expected = [float(f"{1 / math.log(1.02 + n / 1792):.6g}") for n in (1280, 512)]
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["losses"]
    assert written["task"]["class_weights"] == expected and written["dice"]["weight"] == 0.5
    assert "Class weights (enet): a " in caplog.text
    again = distill.main([str(tmp_path / "run" / "recipe.yaml"), "--output_dir", str(tmp_path / "again")])
    assert again["mean_dice"] == json.loads((tmp_path / "run" / "metrics.json").read_text())["mean_dice"]
