"""Exports of labeling tools: recognized by their files, drawn to the pixel."""

import json

import numpy as np
import pytest

from dataset_builders.formats import FORMATS, draw_mask, find_format, read_export
from helpers.exports import EXPORTS, LABELS, REGIONS, labelme, truth, write_picture, yolo


@pytest.mark.parametrize("name", EXPORTS)
def test_masks_equal_what_was_drawn(name, tmp_path):
    """A mask that is off by one pixel at every border teaches the student thin halos."""
    if name.startswith("coco") or name == "label_studio":
        pytest.importorskip("pycocotools")
    EXPORTS[name](tmp_path / "export")
    assert find_format(tmp_path / "export") == name.split(" ")[0]
    export = read_export(tmp_path / "export")
    assert sorted(export.labels) == sorted(LABELS)
    ids = {label: LABELS.index(label) for label in export.labels}
    items = {item.image.stem.removeprefix("1234abcd-"): item for split in export.splits.values() for item in split}
    assert items.keys() == REGIONS.keys()
    for picture, item in items.items():
        assert np.array_equal(draw_mask(item, ids, fill=255), truth(picture)), picture


def test_every_format_has_an_export():
    """A reader without a test is a guess about somebody's files."""
    assert {name.split(" ")[0] for name in EXPORTS} == set(FORMATS)


def test_panoptic_pictures_of_the_validation_split_stay_there(tmp_path):
    """A split that is read from no folder would be drawn anew, held-out pictures and all."""
    EXPORTS["coco panoptic"](tmp_path)
    assert {split: len(items) for split, items in read_export(tmp_path).splits.items()} == {"validation": 3}


def test_a_picture_that_labelme_never_opened_is_unlabeled_and_not_background(tmp_path):
    """All background is a label: the student would learn that unseen pictures show nothing."""
    labelme(tmp_path)
    write_picture(tmp_path / "new.jpg")
    reviewed = {item.image.stem: item.reviewed for item in read_export(tmp_path).splits["train"]}
    assert reviewed == {"a": True, "b": True, "c": True, "new": False}


def test_boxes_are_refused_with_the_export_to_choose(tmp_path):
    """A detection export drawn as boxes would train, and badly."""
    yolo(tmp_path)
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.2 0.2")
    with pytest.raises(ValueError, match="a.txt, line 1 has 4 numbers.*export YOLO segmentation"):
        read_export(tmp_path)


def test_shapes_without_area_are_refused(tmp_path):
    """A point that silently vanishes is a label lost."""
    labelme(tmp_path)
    file = tmp_path / "a.json"
    content = json.loads(file.read_text())
    content["shapes"][0]["shape_type"] = "point"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="type 'point' for class 'crack'"):
        read_export(tmp_path)


def test_files_of_two_tools_are_not_guessed_between(tmp_path):
    """Whoever labeled twice means one of both."""
    labelme(tmp_path)
    yolo(tmp_path)
    with pytest.raises(ValueError, match="several tools: labelme, yolo"):
        read_export(tmp_path)


def test_a_missing_picture_is_named(tmp_path):
    """Half a copy must not become half a dataset."""
    labelme(tmp_path)
    (tmp_path / "b.jpg").unlink()
    with pytest.raises(ValueError, match="b.json names the picture 'b.jpg'"):
        read_export(tmp_path)
