"""The inputs of ../shared/cases/data, one of each kind of odd data: the right result, or what to do about it.

Their kinds are generated again in test_odd_data.py and test_completeness.py for whoever lacks that folder. Case 04 is
the page of one's own data, which test_docs.py runs whole; case 12, the full disk, is in test_completeness.py; case 14
is in tests/loading/test_class_map.py.
"""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from dataset_builders import open_from_arguments
from helpers.commands import script
from helpers.odd_data import stripes
from helpers.own_photos import NAMES
from helpers.paths import SHARED
from hf_segkd.commands import distill
from hf_segkd.recipe import parse
from hf_segkd.training.checks import check_data
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.options import ScriptArguments

CASES = SHARED / "cases" / "data"
LABELS = ["--labels", str(CASES / "labels.txt")]
FAST = ["--crop_size", "32", "32", "--per_device_train_batch_size", "2", "--max_steps", "1", "--eval_steps", "1"]
FAST += ["--save_steps", "1", "--use_cpu", "--student.model_type", "espnet", "--student.use_decoder", "false"]
FAST += ["--student.hidden_sizes", "[4, 10, 10]", "--student.depths", "[1, 1]"]
pytestmark = [
    pytest.mark.skipif(not CASES.is_dir(), reason="needs the folder beside the repository: ../shared/cases"),
    pytest.mark.usefixtures("module_without_figures"),
]


@pytest.fixture
def opened(tmp_path):
    """Opens what the flags of `hf-segkd distill` name."""

    def open_flags(*flags):
        argv = ["--student.model_type", "espnet", "--output_dir", str(tmp_path / "run"), "--use_cpu", *map(str, flags)]
        (arguments, _), _ = parse((ScriptArguments, DistillationConfig), argv)
        return open_from_arguments(arguments)

    return open_flags


def folder(name: str, *flags: str) -> list[str]:
    return ["--dataset", "folder", "--data_dir", str(CASES / name), *flags]


def sizes(dataset) -> dict[str, int]:
    return {split: len(pairs) for split, pairs in dataset.files().items()}


def assert_sound(dataset, count: int) -> None:
    """The check finds nothing, and all rows hold the masks that were written."""
    assert check_data(dataset) == []
    rows = [row for split in dataset.splits for row in dataset.split(split)]
    assert len(rows) == count
    for row in rows:
        number = int("".join(filter(str.isdigit, row["image_id"].split(".rf.")[0])))
        assert np.array_equal(np.array(row["annotation"]), stripes(number)), row["image_id"]


@pytest.mark.parametrize("patterns", [[], ["--images", "*/*.jpg", "--masks", "*/*_mask.png"]], ids=["none", "stars"])
def test_case_01_patterns_that_begin_with_a_star(opened, patterns):
    """A flag that begins with `*` was read as YAML; the folders' splits stay."""
    dataset = opened(*folder("01_star_pattern"), *patterns)
    assert sizes(dataset) == {"train": 6, "validation": 2, "test": 2}
    assert_sound(dataset, 10)


def test_case_02_class_names_of_another_column(opened):
    """Names of scenes were taken for those of the masks."""
    assert opened("--dataset", CASES / "02_first_classlabel").spec.labels == tuple(NAMES)


def test_case_03_predicting_an_opened_dataset(tmp_path):
    """`predict --dataset` reads the column of photos alone."""
    data = ["--dataset", str(CASES / "03_predict_opened")]
    distill.main([*data, *FAST, "--output_dir", str(tmp_path / "run")])
    argv = [str(tmp_path / "run"), *data, "--split", "train", "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    files = script("predict").main(argv)
    assert len(files) == 7 and Image.open(files[0]).size == (48, 40)


def test_case_03_a_gap_in_the_class_ids(opened):
    """It was a KeyError."""
    with pytest.raises(ValueError, match=r"id2label.json numbers the classes \[1, 2\].*0 has no name"):
        str(opened("--dataset", CASES / "03_id2label_gap").spec)


def test_case_05_unlabeled_images_beside_the_splits(opened):
    """Six images were dropped without a word."""
    dataset = opened(*folder("05_unlabeled_folder", *LABELS))
    assert sizes(dataset) == {"train": 10, "validation": 2}
    assert check_data(dataset) == [] and dataset.raw_splits()["train"].unlabeled() == 6


def test_case_07_a_folder_that_is_named_like_a_number(tmp_path, monkeypatch):
    """2024_01 was recorded as 202401, and the recorded recipe could not be run again."""
    monkeypatch.chdir(CASES)
    distill.main(["--dataset", "folder", "--data_dir", "2024_01", *LABELS, *FAST, "--output_dir", str(tmp_path / "a")])
    assert yaml.safe_load((tmp_path / "a" / "recipe.yaml").read_text())["data_dir"] == "2024_01"
    again = distill.main([str(tmp_path / "a" / "recipe.yaml"), "--output_dir", str(tmp_path / "b")])
    assert again["mean_iou"] == json.loads((tmp_path / "a" / "metrics.json").read_text())["mean_iou"]


def test_case_08_class_names_in_a_table(opened):
    """The file's name became the only class."""
    dataset = opened(*folder("2024_01", "--labels", str(CASES / "classes.csv")))
    assert dataset.spec.labels == tuple(NAMES)
    assert_sound(dataset, 6)


@pytest.mark.parametrize("patterns", [[], ["--images", "img_dir/*/*.jpg", "--masks", "ann_dir/*/*.png"]])
def test_case_09_held_out_images_stay_held_out(opened, patterns):
    """The folders were pooled and a validation split drawn anew."""
    dataset = opened(*folder("09_img_dir", *LABELS), *patterns)
    assert sizes(dataset) == {"train": 7, "validation": 3}
    assert_sound(dataset, 10)


def test_case_10_names_taken_apart_by_macos(opened):
    """Names that look identical did not match."""
    assert_sound(opened(*folder("10_nfd", *LABELS)), 4)


def test_case_11_a_part_that_is_missing(opened):
    """It was trained on the rest."""
    with pytest.raises(ValueError, match="lacks 1 of 2 parts: train-00001-of-00002.parquet. Copy it again"):
        opened("--dataset", CASES / "11_partial_export").split("train")


def test_case_13_photos_turned_by_exif(opened, caplog):
    """Sizes agree, so only a person can tell: the warning says how."""
    turned = folder("13_exif180", *LABELS)
    assert check_data(opened(*turned)) == [] and "give --turn_masks; overview.png" in caplog.text
    caplog.clear()
    assert_sound(opened(*turned, "--turn_masks", "true"), 4)
    assert "turned image" not in caplog.text


@pytest.mark.parametrize("name", ["15_ids_in_rgb", "15_float_ids"])
def test_case_15_class_ids_in_other_forms(opened, name):
    """Both were called color masks."""
    assert_sound(opened(*folder(name, *LABELS)), 4)


def test_case_16_a_picture_of_one_pixel(opened):
    """Training failed in its middle."""
    with pytest.raises(ValueError, match=r"tiny image .*2.png +1 x 1 pixels") as refused:
        check_data(opened(*folder("16_one_pixel", *LABELS)))
    assert "Remove it and its mask" in str(refused.value)


def test_case_18_the_labels_file_of_labelme(opened):
    """`__ignore__` is -1 there: every class was off by one."""
    dataset = opened(*folder("2024_01", "--labels", str(CASES / "labelme_labels.txt")))
    assert dataset.spec.labels == ("_background_", "crack", "rust")
    assert_sound(dataset, 6)


def test_case_20_thumbnails_of_a_network_disk(opened):
    """@eaDir holds files that are called like the photos."""
    assert_sound(opened(*folder("20_eadir", *LABELS)), 4)


def test_case_21_jfif(opened):
    """Photos that a browser saved were not found."""
    assert_sound(opened(*folder("21_jfif", *LABELS)), 4)


@pytest.mark.parametrize("name", ["22_yolo", "22_coco", "22_labelme"])
def test_case_22_polygons(opened, name):
    """They are drawn; what lies in none must be said."""
    if name == "22_coco":
        pytest.importorskip("pycocotools")
    with pytest.raises(ValueError, match="--unlabeled_as background"):
        opened(*folder(name)).split("train")
    dataset = opened(*folder(name, "--unlabeled_as", "background"))
    assert dataset.spec.labels[-1] == "crack" and dataset.spec.num_labels == 2
    row = dataset.split("train")[0]
    annotation = np.array(row["annotation"])
    assert annotation.shape == (40, 48) and set(annotation.flat) == {0, 1}
    assert annotation[10, 10] == 1 and annotation[0, 0] == annotation[39, 47] == 0
