"""Exports of shapes through `--dataset folder`: classes, background, splits and cache."""

import numpy as np
import pytest

from dataset_builders import open_dataset
from helpers.exports import EXPORTS, LABELS, REGIONS, coco, labelme, truth, write_picture, yolo
from helpers.folder_checks import check
from helpers.odd_data import write_pairs
from hf_segkd.training.checks import check_data

pytest.importorskip("pycocotools")


@pytest.fixture
def opened(tmp_path):
    def open_folder(root, **options):
        return open_dataset("folder", str(root), cache_dir=str(tmp_path / "cache"), **options)

    return open_folder


def masks(dataset) -> dict[str, np.ndarray]:
    rows = [row for split in dataset.splits for row in dataset.split(split)]
    return {row["image_id"].removeprefix("1234abcd-"): np.array(row["annotation"]) for row in rows}


@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("unlabeled_as", ["background", "ignore"])
def test_prepared_masks_equal_what_was_drawn(tmp_path, opened, name, unlabeled_as):
    """From the tool's file to the pixel that the student sees."""
    options = {"split": "train2017"} if name == "coco panoptic" else {}
    EXPORTS[name](tmp_path / "export", **options)
    dataset = opened(tmp_path / "export", unlabeled_as=unlabeled_as)
    found = masks(dataset)
    assert found.keys() == REGIONS.keys() and not dataset.unused
    first = 1 if unlabeled_as == "background" else 0
    assert sorted(dataset.spec.labels[first:]) == sorted(LABELS)
    for picture, mask in found.items():
        drawn = truth(picture)
        for index, label in enumerate(LABELS):
            assert np.array_equal(mask == dataset.spec.labels.index(label), drawn == index), picture
        assert np.array_equal(mask == (0 if first else 255), drawn == 255)


def test_pixels_in_no_shape_are_asked_about(tmp_path, opened):
    """Background or unlabeled: guessed wrong, the student learns that cracks are background."""
    labelme(tmp_path)
    with pytest.raises(ValueError) as refused:
        str(opened(tmp_path).spec)
    assert "--unlabeled_as background if" in str(refused.value) and "--unlabeled_as ignore if" in str(refused.value)


def test_labels_reorder_and_limit_the_classes_of_an_export(tmp_path, opened, caplog):
    """Two exports must come out in one order, and not every class is wanted."""
    yolo(tmp_path)
    dataset = opened(tmp_path, unlabeled_as="background", labels=["rust", "background", "crack"])
    assert dataset.spec.labels == ("rust", "background", "crack")
    assert np.array_equal(masks(dataset)["b"] == 0, truth("b") == 1)
    dataset = opened(tmp_path, unlabeled_as="background", labels=["background", "rust"])
    assert np.array_equal(masks(dataset)["a"] == 1, truth("a") == 1) and "Shapes of crack are left out" in caplog.text
    with pytest.raises(ValueError, match="no class 'rusty'. Did you mean 'rust'"):
        str(opened(tmp_path, unlabeled_as="background", labels=["background", "rusty"]).spec)


def test_a_class_that_nobody_drew_yet_may_be_named_for_labelme(tmp_path, opened, caplog):
    """labelme keeps no list of classes: a misspelled name is refused, a rare one is not."""
    labelme(tmp_path)
    dataset = opened(tmp_path, unlabeled_as="background", labels=["background", "moss", "crack", "rust"])
    assert np.array_equal(masks(dataset)["b"] == 3, truth("b") == 1) and "No shape is of class 'moss'" in caplog.text
    with pytest.raises(ValueError, match="no class 'craks'. Did you mean 'crack'"):
        str(opened(tmp_path, unlabeled_as="background", labels=["background", "craks", "rust"]).spec)


def test_one_class_without_background_is_refused(tmp_path, opened):
    """All of its pixels are that class."""
    yolo(tmp_path)
    with pytest.raises(ValueError, match="There is one class, 'crack'.*--unlabeled_as background"):
        str(opened(tmp_path, unlabeled_as="ignore", labels=["crack"]).spec)


def test_labelme_keeps_the_order_of_its_file_and_its_ignored_shapes(tmp_path, opened):
    """labelme's own list begins at -1; sorted by name the classes would be others."""
    labelme(tmp_path)
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nrust\ncrack\n")
    text = (tmp_path / "b.json").read_text()
    (tmp_path / "b.json").write_text(text.replace('"rust"', '"__ignore__"'))
    dataset = opened(tmp_path, unlabeled_as="background")
    assert dataset.spec.labels == ("background", "rust", "crack")
    assert np.array_equal(masks(dataset)["b"] == 255, truth("b") == 1)


def test_pictures_that_nobody_opened_train_unlabeled(tmp_path, opened):
    """A picture without an annotation file is not a picture of background."""
    labelme(tmp_path)
    write_picture(tmp_path / "new.jpg")
    assert set(masks(opened(tmp_path, unlabeled_as="background"))["new"].flat) == {255}


def test_a_changed_annotation_is_drawn_again(tmp_path, opened):
    """The photos stay as they are: a cache keyed on them alone would train on yesterday's shapes."""
    yolo(tmp_path)
    before = masks(opened(tmp_path, unlabeled_as="ignore"))["a"]
    (tmp_path / "labels" / "train" / "a.txt").write_text("")
    after = masks(opened(tmp_path, unlabeled_as="ignore"))["a"]
    assert set(before.flat) == {0, 1, 255} and set(after.flat) == {255}


def test_an_export_passes_the_check_before_training(tmp_path, opened):
    """Drawn masks must be read by everything that reads masks."""
    coco(tmp_path)
    assert check_data(opened(tmp_path, unlabeled_as="background")) == []


def test_masks_and_vague_folders_beside_an_export_are_asked_about(tmp_path):
    """Pictures in `labels/` beside YOLO's text files may be masks or not."""
    yolo(tmp_path)
    write_picture(tmp_path / "labels" / "train" / "a.png")
    with pytest.raises(ValueError, match="files of labels and of yolo. Say which: --data_format"):
        check(tmp_path)


def test_masks_win_over_notes_of_a_tool_beside_them(tmp_path):
    """A folder of finished masks is read as such, without looking into every JSON file."""
    write_pairs(tmp_path)
    labelme(tmp_path / "notes")
    assert check(tmp_path) == []
