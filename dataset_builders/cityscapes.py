"""Cityscapes: 19 classes, 2975 / 500 / 1525 images of 2048 x 1024 pixels.

python dataset_builders/cityscapes.py --data_dir cityscapes --output cityscapes_prepared
"""

from dataclasses import dataclass

import datasets

from dataset_builders.files import Part, list_parts
from dataset_builders.pair_builder import PairBuilder
from hf_segkd.data.label_map import LabelMap
from hf_segkd.data.specs import DatasetSpec

# Names, ids and colors: https://github.com/mcordts/cityscapesScripts (helpers/labels.py).
CLASSES = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}

# Name of every label id. Those that are no key of CLASSES are ignored in training and evaluation.
LABEL_IDS = {
    -1: "license plate",
    0: "unlabeled",
    1: "ego vehicle",
    2: "rectification border",
    3: "out of roi",
    4: "static",
    5: "dynamic",
    6: "ground",
    7: "road",
    8: "sidewalk",
    9: "parking",
    10: "rail track",
    11: "building",
    12: "wall",
    13: "fence",
    14: "guard rail",
    15: "bridge",
    16: "tunnel",
    17: "pole",
    18: "polegroup",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    29: "caravan",
    30: "trailer",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}

SPEC = DatasetSpec(
    name="cityscapes",
    labels=tuple(CLASSES),
    palette=tuple(CLASSES.values()),
    test_split=None,  # nobody has the test labels: papers score the validation split
    license="Cityscapes: non-commercial use under its own terms, https://www.cityscapes-dataset.com/license/.",
    link="https://www.cityscapes-dataset.com",
)

EXTRA = Part(("leftImg8bit/train_extra",), "leftImg8bit_trainextra.zip")


@dataclass
class CityscapesConfig(datasets.BuilderConfig):
    """`extra` adds the images of train_extra, which have coarse labels only, to the train split without labels."""

    extra: bool = False


class Cityscapes(PairBuilder):
    """Reads `leftImg8bit/` and `gtFine/`, or the official archives of these names, below `data_dir`.

    The label ids of `*_gtFine_labelIds.png` become the 19 train ids; the other ids are ignored. The annotations of
    the test split are ignored throughout: its labels are kept by the evaluation server.

    Reference: Cordts et al., The Cityscapes Dataset for Semantic Urban Scene Understanding, CVPR 2016,
    https://huggingface.co/papers/1604.01685
    """

    BUILDER_CONFIG_CLASS = CityscapesConfig
    SPEC = SPEC
    TITLE = "Cityscapes"
    PAGE = "Get leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from https://www.cityscapes-dataset.com/downloads/."
    PARTS = (
        Part(("leftImg8bit",), "leftImg8bit_trainvaltest.zip"),
        Part(("gtFine",), "gtFine_trainvaltest.zip"),
    )
    LAYOUT = {
        "train": (r"leftImg8bit/train/(.+)_leftImg8bit\.png", r"gtFine/train/(.+)_gtFine_labelIds\.png"),
        "validation": (r"leftImg8bit/val/(.+)_leftImg8bit\.png", r"gtFine/val/(.+)_gtFine_labelIds\.png"),
        "test": (r"leftImg8bit/test/(.+)_leftImg8bit\.png", None),
    }
    COUNTS = {"train": 2975, "validation": 500, "test": 1525}
    EXTRA_COUNT = 19998

    @classmethod
    def counts(cls, config):
        return cls.COUNTS | {"train": cls.COUNTS["train"] + cls.EXTRA_COUNT * config.extra}

    @classmethod
    def label_map(cls, config):
        names = {raw: name for raw, name in LABEL_IDS.items() if raw >= 0}  # license plates are never drawn
        ids = {raw: cls.SPEC.label2id.get(name, cls.SPEC.ignore_index) for raw, name in names.items()}
        advice = "Use the files *_gtFine_labelIds.png of the official download."
        return LabelMap(ids | {255: 255}, "the label ids 0 to 33 and 255", advice)

    @classmethod
    def find_pairs(cls, data_dir, config):
        pairs = super().find_pairs(data_dir, config)
        if config.extra:
            page = "Get leftImg8bit_trainextra.zip from https://www.cityscapes-dataset.com/downloads/."
            found = list_parts(data_dir, (EXTRA,), cls.TITLE, page)
            pattern = r"leftImg8bit/train_extra/(.+)_leftImg8bit\.png"
            pairs["train"] = pairs.get("train", []) + cls.pair(found, "train_extra", pattern, None)
        return pairs


if __name__ == "__main__":
    from dataset_builders.prepare import main

    main("cityscapes", __doc__)
