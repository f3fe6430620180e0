"""Unreadable training images are left out only when asked, everywhere, and counted."""

import functools
import json

import datasets
import pytest

import dataset_builders
from helpers.commands import distill
from helpers.folder_checks import check, refusal
from helpers.own_photos import COLUMNS, NAMES, cut_off, table, write_splits
from helpers.tiny import TINY
from hf_segkd.training.inputs import InputArguments, training_data

pytestmark = pytest.mark.usefixtures("module_without_figures")


@pytest.fixture
def photos(tmp_path):
    return write_splits(tmp_path / "photos")


def test_unreadable_training_images_are_returned_only_when_asked(photos, monkeypatch):
    """All training images are read then: one outside the sample would stop the run all the same."""
    monkeypatch.setattr("hf_segkd.training.checks.SAMPLE", 1)
    cut_off(photos / "images" / "train" / "train_3.png")
    cut_off(photos / "masks" / "train" / "train_5.png")
    assert check(photos, skip_unreadable=True) == [3, 5]
    cut_off(photos / "images" / "val" / "val_10.png")  # the first in the order of names
    assert "val_10.png" in refusal(photos, skip_unreadable=True)


def test_skipping_everything_or_without_a_check_is_refused(photos):
    """A run on no image, or one that was told to skip what it does not look for."""
    with pytest.raises(ValueError, match="needs the check"):
        check(photos, how="none", skip_unreadable=True)
    for path in (photos / "images" / "train").iterdir():
        cut_off(path)
    assert "All 8 images of the train split are unreadable" in refusal(photos, skip_unreadable=True)


def test_a_dataset_without_a_train_split_is_refused_in_words(tmp_path):
    """A KeyError from the check would hide what the loader has to say."""
    rows = table(4)
    datasets.DatasetDict({"validation": rows}).save_to_disk(tmp_path / "disk")
    options = {"labels": NAMES, **COLUMNS}
    arguments = InputArguments(dataset=str(tmp_path / "disk"), crop_size=[16, 16], **options)
    dataset = dataset_builders.open_dataset(arguments.dataset, **options)
    with pytest.raises(ValueError, match="has no split 'train'"):
        training_data(arguments, dataset, seed=0)


def test_skipped_rows_are_left_out_of_the_split(photos, tmp_path):
    """The builder itself refuses an unreadable mask: the pair must go before it opens the file."""
    cut_off(photos / "masks" / "train" / "train_5.png")
    rows = dataset_builders.open_dataset("folder", str(photos), labels=NAMES).split("train", {"train": [5]})
    assert [row["image_id"] for row in rows] == [f"train_{index}" for index in (0, 1, 2, 3, 4, 6, 7)]
    rows = dataset_builders.open_dataset("folder", str(photos), labels=NAMES).split("validation", {"train": [5]})
    assert len(rows) == 4, "the splits of a folder are prepared together"
    table(6).save_to_disk(tmp_path / "disk")
    name, options = str(tmp_path / "disk"), {"labels": NAMES, **COLUMNS}
    load = functools.partial(dataset_builders.open_dataset(name, **options).split, "train")
    whole, part = (load(skip=skip)["image_id"] for skip in ({}, {"train": [2]}))
    assert part == [*whole[:2], *whole[3:]]


def test_a_run_refuses_skips_and_counts(photos, tmp_path):
    """A number in metrics.json is the only trace of images that were not trained on."""
    cut_off(photos / "images" / "train" / "train_3.png")
    cut_off(photos / "masks" / "train" / "train_5.png")
    argv = ["--dataset", "folder", "--data_dir", str(photos), "--labels", *NAMES, "--student.model_type", "espnet"]
    argv += [f"--student.{key}={json.dumps(TINY[key])}" for key in ("use_decoder", "hidden_sizes", "depths")]
    argv += ["--crop_size", "32", "32", "--per_device_train_batch_size", "2", "--max_steps", "2", "--use_cpu"]
    argv += ["--eval_steps", "2", "--save_steps", "2", "--cat_max_ratio", "0.75", "--jitter.brightness", "0.1"]
    with pytest.raises(SystemExit) as stop:
        distill.main([*argv, "--output_dir", str(tmp_path / "refused")])
    assert "train_3.png" in str(stop.value.code) and "train_5.png" in str(stop.value.code)
    cache = ["--cache_dir", str(tmp_path / "cache")]
    report = distill.main([*argv, *cache, "--skip_unreadable", "--output_dir", str(tmp_path / "run")])
    assert report["skipped_unreadable"] == 2
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["skipped_unreadable"] == 2
    with pytest.raises(SystemExit, match="jitter takes brightness, contrast, saturation, hue"):
        distill.main([*argv, "--jitter.gamma", "2", "--output_dir", str(tmp_path / "refused")])
