"""Cityscapes: 19 classes, 2975 / 500 / 1525 images of 2048 x 1024 pixels.

python dataset_builders/cityscapes.py --data_dir cityscapes --output cityscapes_prepared
"""

from dataclasses import dataclass

import datasets

from dataset_builders.files import Part, list_parts
from dataset_builders.pair_builder import PairBuilder
from hf_segkd.data.label_map import LabelMap
from hf_segkd.data.labels import CITYSCAPES_IDS
from hf_segkd.data.specs import DATASETS

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
    SPEC = DATASETS["cityscapes"]
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
        names = {raw: name for raw, name in CITYSCAPES_IDS.items() if raw >= 0}  # license plates are never drawn
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
