"""Names, colors and ids of the benchmark datasets against their official tables."""

import csv
import zlib

import numpy as np
import pytest

from dataset_builders import DATASETS
from dataset_builders.cityscapes import LABEL_IDS
from dataset_builders.coco_stuff_164k import UNUSED
from helpers.paths import SHARED
from hf_segkd.data.colors import bit_color, distinct_colors

SAMPLES = SHARED / "samples" / "ade20k_sceneparsing"


@pytest.mark.parametrize(
    ("name", "count"), [("cityscapes", 19), ("voc_aug", 21), ("camvid", 11), ("ade20k", 150), ("coco_stuff_164k", 182)]
)
def test_number_of_classes_is_the_published_one(name, count):
    """A class too few shifts all that follow it."""
    assert DATASETS[name].num_labels == count


@pytest.mark.parametrize(
    ("name", "index", "label", "color"),
    [
        ("cityscapes", 0, "road", (128, 64, 128)),
        ("cityscapes", 18, "bicycle", (119, 11, 32)),
        ("voc_aug", 0, "background", (0, 0, 0)),
        ("voc_aug", 1, "aeroplane", (128, 0, 0)),
        ("voc_aug", 15, "person", (192, 128, 128)),
        ("voc_aug", 20, "tvmonitor", (0, 64, 128)),
        ("ade20k", 0, "wall", (120, 120, 120)),
        ("ade20k", 12, "person", (150, 5, 61)),
        ("ade20k", 149, "flag", (92, 0, 255)),
        ("camvid", 3, "Road", (128, 64, 128)),
    ],
)
def test_known_classes_have_their_official_place_and_color(name, index, label, color):
    """Figures in other colors than everybody's are misread."""
    assert (DATASETS[name].labels[index], DATASETS[name].palette[index]) == (label, color)


def test_coco_stuff_has_91_things_then_91_kinds_of_stuff():
    """Pixel values are positions in this list."""
    labels = DATASETS["coco_stuff_164k"].labels
    assert [labels[index] for index in (0, 10, 12, 89, 91, 181)] == [
        *("person", "fire hydrant", "stop sign", "toothbrush", "banner", "wood")
    ]
    assert [labels.index(name) for name in UNUSED] == [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]


def test_cityscapes_has_35_label_ids_that_name_every_class_once():
    """The test server wants these ids back."""
    names = list(LABEL_IDS.values())
    assert len(names) == len(set(names)) == 35
    assert [name for name in names if name in DATASETS["cityscapes"].labels] == list(DATASETS["cityscapes"].labels)
    assert (LABEL_IDS[-1], LABEL_IDS[7], LABEL_IDS[33]) == ("license plate", "road", "bicycle")


def test_ade20k_names_and_colors_are_those_of_the_official_files():
    """Sixteen names differ in a widespread copy of this table."""
    if not SAMPLES.is_dir():
        pytest.skip("needs ../shared/samples/ade20k_sceneparsing")
    with (SAMPLES / "objectInfo150.csv").open(newline="") as file:
        official = [row["Name"].split(";") for row in csv.DictReader(file)]
    for name, words in zip(DATASETS["ade20k"].labels, official, strict=True):
        assert name.split() == words[: len(name.split())]
    content = zlib.decompress((SAMPLES / "visualizationCode" / "color150.mat").read_bytes()[136:])
    start = content.index((2).to_bytes(4, "little") + (450).to_bytes(4, "little")) + 8  # 450 values of type uint8
    colors = np.frombuffer(content[start : start + 450], dtype=np.uint8).reshape(3, 150).T
    assert DATASETS["ade20k"].palette == tuple(map(tuple, colors.tolist()))


def test_generated_colors_are_distinct_without_black():
    """Black is what overlays use for ignored pixels."""
    assert [bit_color(index) for index in (0, 1, 2, 3, 8)] == [
        *((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (64, 0, 0))
    ]
    colors = distinct_colors(255)
    assert len(set(colors)) == 255 and (0, 0, 0) not in colors
