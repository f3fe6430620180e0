"""Files of class names as labeling tools write them."""

import numpy as np
import pytest

from dataset_builders import open_dataset
from dataset_builders.class_files import find_class_file, read_class_file
from helpers.odd_data import stripes, write_pairs
from helpers.own_photos import NAMES

COLORS = {(0, 0, 0): "background", (255, 0, 0): "crack", (128, 64, 0): "rust"}
ORDERED = {
    "labels.txt": "background\ncrack\nrust\n",
    "labelme.txt": "__ignore__\nbackground\ncrack\nrust\n",
    "numbered.txt": "0: background\n2: rust\n1: crack\n",
    "classes.csv": "background\ncrack\nrust\n",
    "_classes.csv": "Pixel Value, Class\n0, background\n1, crack\n2, rust\n",
    "list.json": '["background", "crack", "rust"]',
    "id2label.json": '{"0": "background", "1": "crack", "2": "rust"}',
    "label2id.json": '{"crack": 1, "background": 0, "rust": 2}',
    "data.yaml": "train: x\nnames:\n  0: background\n  1: crack\n  2: rust\n",
    "list.yaml": "nc: 3\nnames: [background, crack, rust]\n",
}
COLORED = {
    "labelmap.txt": "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncrack:255,0,0::\nrust:128,64,0::\n",
    "class_dict.csv": "name,r,g,b\nbackground,0,0,0\ncrack,255,0,0\nrust,128,64,0\n",
}
REFUSED = {
    "header.txt": ("name\nbackground\ncrack\n", "reads like a header and would shift every class"),
    "comment.txt": ("# my classes\nbackground\ncrack\n", "'# my classes' is no class name"),
    "late.txt": ("background\n__ignore__\ncrack\n", "'__ignore__' is no class name"),
    "gap.txt": ("0 background\n2 rust\n", "1 has no name"),
    "twice.txt": ("0 background\n0 rust\n", "a number is given twice"),
    "empty.txt": (" \n", "is empty"),
    "other.csv": ("file,width\na,3\nb,4\n", "begins with 'file,width'"),
    "ragged.csv": ("name,r,g,b\nbuilding, edifice,0,0,0\n", "with as many cells in each row"),
    "words.csv": ("id,name\nzero,background\n", "has no whole number"),
    "coco.json": ('{"images": [], "categories": []}', "neither a list of class names"),
    "broken.json": ("{", "is not valid JSON"),
    "names.xml": ("<a/>", "is no file of class names"),
}


@pytest.mark.parametrize("file", ORDERED)
def test_names_in_order(tmp_path, file):
    """A line that is no class shifts every class by one."""
    (tmp_path / file).write_text(ORDERED[file], encoding="utf-8-sig")
    assert read_class_file(tmp_path / file) == (tuple(NAMES), None)


@pytest.mark.parametrize("file", COLORED)
def test_colors_and_names(tmp_path, file):
    """The file that comes with color masks says what the colors mean."""
    (tmp_path / file).write_text(COLORED[file])
    assert read_class_file(tmp_path / file) == (tuple(NAMES), COLORS)


def test_labelme_calls_the_background_by_its_own_name(tmp_path):
    """`__ignore__` is -1 there: the class after it is 0."""
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\ncrack\nrust\n")
    assert read_class_file(tmp_path / "labels.txt").names == ("_background_", "crack", "rust")


def test_values_with_gaps_are_kept(tmp_path):
    """A table of pixel values says itself which value is which class."""
    (tmp_path / "_classes.csv").write_text("Pixel Value, Class\n0, background\n7, crack\n")
    assert read_class_file(tmp_path / "_classes.csv").values == {0: "background", 7: "crack"}


@pytest.mark.parametrize("file", REFUSED)
def test_anything_else_is_refused_by_its_content(tmp_path, file):
    """Read as one class, or shifted by one, it would train."""
    text, message = REFUSED[file]
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_class_file(tmp_path / file)


def test_the_file_in_the_folder_is_found_and_shown(tmp_path, caplog):
    """Names that lie beside the masks need no flag, and must be seen."""
    root = write_pairs(tmp_path / "data", convert=lambda ids: np.array([*COLORS], dtype=np.uint8)[ids])
    (root / "class_dict.csv").write_text(COLORED["class_dict.csv"])
    caplog.set_level("INFO")
    dataset = open_dataset("folder", str(root), cache_dir=str(tmp_path / "cache"))
    row = dataset.split("train")[0]
    assert np.array_equal(np.array(row["annotation"]), stripes(int(row["image_id"])))
    assert dataset.spec.palette == tuple(COLORS)
    assert "class_dict.csv: 0 background, 1 crack, 2 rust" in caplog.text


def test_files_that_disagree_are_not_guessed_between(tmp_path):
    """One of them is of another day."""
    (tmp_path / "labels.txt").write_text("a\nb\n")
    (tmp_path / "classes.txt").write_text("b\na\n")
    with pytest.raises(ValueError, match=r"labels.txt, classes.txt. Say which: --labels"):
        find_class_file(tmp_path)
