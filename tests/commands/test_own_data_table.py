"""Every row of the table of docs/your_own_data.md, on an export in the layout that its tool writes."""

import re
import shlex
from itertools import takewhile

import numpy as np
import pytest

from helpers import exports
from helpers.odd_data import photo, stripes, write_beside, write_mmseg, write_pairs, write_voc
from helpers.own_photos import NAMES, save
from helpers.paths import ROOT
from hf_segkd.commands import distill

COLORS = np.array([(0, 0, 0), (255, 0, 0), (128, 64, 0)], dtype=np.uint8)
FAST = ["--crop_size", "32", "32", "--per_device_train_batch_size", "2", "--max_steps", "5", "--eval_steps", "5"]
FAST += ["--save_steps", "5", "--use_cpu", "--student.model_type", "espnet", "--student.use_decoder", "false"]
FAST += ["--student.hidden_sizes", "[4, 10, 10]", "--student.depths", "[1, 1]"]


def ids_with_names(root):
    (write_pairs(root) / "labels.txt").write_text("\n".join(NAMES))


def kaggle(root):
    write_pairs(root, convert=lambda ids: COLORS[ids])
    lines = [f"{name},{red},{green},{blue}" for name, (red, green, blue) in zip(NAMES, COLORS, strict=True)]
    (root / "class_dict.csv").write_text("\n".join(["name,r,g,b", *lines]))


def cvat(root):
    for index in range(4):
        save(root / "JPEGImages" / f"{index}.jpg", photo(index))
        save(root / "SegmentationClass" / f"{index}.png", COLORS[stripes(index)])
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "default.txt").write_text("0\n1\n2\n3\n")
    lines = [f"{name}:{red},{green},{blue}::" for name, (red, green, blue) in zip(NAMES, COLORS, strict=True)]
    (root / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *lines]))


def beside(root):
    for index in range(4):
        save(root / "all" / f"{index}.jpg", photo(index))
        save(root / "all" / f"{index}_mask.png", stripes(index))


WRITERS = {
    "masks of class ids": ids_with_names,
    "class ids from 1, 0 unlabeled": write_pairs,
    "masks of 0 and 255": lambda root: write_pairs(root, convert=lambda ids: (ids == 1).astype(np.uint8) * 255),
    "color masks (Kaggle)": kaggle,
    "arrays": lambda root: write_pairs(root, suffix="npy"),
    "Roboflow": write_beside,
    "Roboflow or CVAT": exports.coco,
    "CVAT": cvat,
    "Pascal VOC": write_voc,
    "mmsegmentation": write_mmseg,
    "labelme": exports.labelme,
    "YOLO": exports.yolo,
    "Label Studio": exports.label_studio,
    "Supervisely": exports.supervisely,
    "COCO panoptic": lambda root: exports.coco_panoptic(root, "train2017"),
    "ADE20K, full release": exports.ade20k_full,
    "other names and places": beside,
}


def table() -> dict[str, list[str]]:
    """What one has -> flags."""
    page = (ROOT / "docs" / "your_own_data.md").read_text(encoding="utf-8")
    lines = page[page.index("| you have |") :].splitlines()[2:]
    rows = [line.strip("| ").split(" | ") for line in takewhile(lambda line: line.startswith("| "), lines)]
    return {row[0]: shlex.split(row[2].strip("`").removesuffix("none")) for row in rows}


def test_the_table_and_its_writers_agree():
    """A row without a generated export is a promise that nobody checks."""
    assert list(table()) == list(WRITERS)


@pytest.mark.slow
@pytest.mark.parametrize("row", WRITERS)
def test_a_row_trains_with_its_flags(row, tmp_path, capsys):
    """A flag that is missing in the table stops a newcomer at their first command."""
    if row in ("Roboflow or CVAT", "Label Studio"):
        pytest.importorskip("pycocotools")
    WRITERS[row](tmp_path / "export")
    data = ["--data", str(tmp_path / "export"), *table()[row]]
    report = distill.main([*data, *FAST, "--output_dir", str(tmp_path / "run")])
    names = list(report["per_class_iou"])
    assert {"crack", "rust"} <= set(names) or names == ["background", "crack"]
    assert re.search(r"^Data export: train \d+", capsys.readouterr().out, flags=re.MULTILINE)
