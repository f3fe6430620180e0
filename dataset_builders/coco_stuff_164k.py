"""COCO-Stuff 164K: 182 label ids of which 171 occur, 118287 / 5000 images.

python dataset_builders/coco_stuff_164k.py --data_dir coco --num_labels 171 --output coco_stuff_prepared
"""

from dataclasses import dataclass, replace

import datasets

from dataset_builders.files import Part, check_folder
from dataset_builders.pair_builder import PairBuilder
from hf_segkd.data.colors import distinct_colors
from hf_segkd.data.label_map import LabelMap
from hf_segkd.data.specs import DatasetSpec

# 91 things, then 91 kinds of stuff; the pixel value of a class is its position. Names and order are those of
# https://github.com/nightrome/cocostuff (labels.txt, whose ids are one higher than the pixel values).
_NAMES = """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, street sign,
    stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, hat,
    backpack, umbrella, shoe, eye glasses, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite,
    baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, plate, wine glass, cup, fork, knife,
    spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch,
    potted plant, bed, mirror, dining table, window, desk, toilet, door, tv, laptop, mouse, remote, keyboard,
    cell phone, microwave, oven, toaster, sink, refrigerator, blender, book, clock, vase, scissors, teddy bear,
    hair drier, toothbrush, hair brush, banner, blanket, branch, bridge, building-other, bush, cabinet, cage,
    cardboard, carpet, ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff,
    dirt, door-stuff, fence, floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog,
    food-other, fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat, metal,
    mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other, plastic, platform,
    playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea, shelf, sky-other, skyscraper,
    snow, solid-other, stairs, stone, straw, structural-other, table, tent, textile-other, towel, tree, vegetable,
    wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops,
    window-blind, window-other, wood
"""

LABELS = tuple(name.strip() for name in _NAMES.split(","))

# Announced, then never annotated: COCO has 171 classes with pixels.
UNUSED = (
    "street sign",
    "hat",
    "shoe",
    "eye glasses",
    "plate",
    "mirror",
    "window",
    "desk",
    "door",
    "blender",
    "hair brush",
)

SPEC = DatasetSpec(
    name="coco_stuff_164k",
    labels=LABELS,
    # The official toolbox paints every thing black.
    palette=distinct_colors(len(LABELS)),
    test_split=None,  # nobody has the test labels: papers score the validation split
    license="COCO-Stuff: annotations under CC BY 4.0; images under Flickr's terms of use.",
    link="https://github.com/nightrome/cocostuff",
)


@dataclass
class CocoStuffConfig(datasets.BuilderConfig):
    """`num_labels` 182 keeps the raw ids, as CIRKD does; 171 leaves the 11 out that never occur, as all others do.

    Raises:
        `ValueError`: For another number.
    """

    num_labels: int = 182

    def __post_init__(self):
        super().__post_init__()
        if self.num_labels not in (171, 182):
            raise ValueError(f"num_labels of COCO-Stuff must be 182 (raw ids) or 171, got {self.num_labels}.")


class CocoStuff164k(PairBuilder):
    """Reads `train2017/` and `val2017/` with `stuffthingmaps/`, below `data_dir`, or the official archives of these.

    CIRKD's folders `images/` and `annotations/` serve as well. Raw values are the train ids, 255 is ignored.

    Differs from the original: with 171 classes mIoU is a mean over classes that occur; CIRKD's mean over 182 counts
    11 classes without pixels as 0 and is lower by 171 / 182.

    Reference: Caesar et al., COCO-Stuff: Thing and Stuff Classes in Context, CVPR 2018,
    https://huggingface.co/papers/1612.03716
    """

    BUILDER_CONFIG_CLASS = CocoStuffConfig
    SPEC = SPEC
    TITLE = "COCO-Stuff 164K"
    PAGE = (
        "Get train2017.zip and val2017.zip from https://cocodataset.org/#download, stuffthingmaps_trainval2017.zip "
        "from https://github.com/nightrome/cocostuff."
    )
    PARTS = (
        Part(("train2017", "images/train2017"), "train2017.zip"),
        Part(("stuffthingmaps/train2017", "annotations/train2017"), "stuffthingmaps_trainval2017.zip"),
        Part(("val2017", "images/val2017"), "val2017.zip"),
        Part(("stuffthingmaps/val2017", "annotations/val2017"), "stuffthingmaps_trainval2017.zip"),
    )
    LAYOUT = {
        "train": (r"train2017/(\d+)\.jpg", r"train2017/(\d+)\.png"),
        "validation": (r"val2017/(\d+)\.jpg", r"val2017/(\d+)\.png"),
    }
    COUNTS = {"train": 118287, "validation": 5000}

    @classmethod
    def parts(cls, data_dir):
        # Train and validation images are downloads of their own: either will do.
        root = check_folder(data_dir, cls.TITLE, ", ".join(map(str, cls.PARTS)), cls.PAGE)
        splits = cls.PARTS[:2], cls.PARTS[2:]
        return sum((split for split in splits if split[0].sources(root)), ()) or cls.PARTS

    @classmethod
    def spec(cls, data_dir, config):
        if config.num_labels == cls.SPEC.num_labels:
            return cls.SPEC
        kept = {name: color for name, color in zip(cls.SPEC.labels, cls.SPEC.palette, strict=True)}
        for name in UNUSED:
            del kept[name]
        return replace(cls.SPEC, labels=tuple(kept), palette=tuple(kept.values()))

    @classmethod
    def label_map(cls, config):
        ids = cls.spec(None, config).label2id
        raw = {value: ids[name] for value, name in cls.SPEC.id2label.items() if name in ids}
        allowed = "0 to 181 and 255" if len(ids) == 182 else "0 to 181 but for the 11 ids that are never used, and 255"
        advice = "Use the PNGs of stuffthingmaps_trainval2017.zip as they are."
        return LabelMap(raw | {255: 255}, allowed, advice)


if __name__ == "__main__":
    from dataset_builders.prepare import main

    main("coco_stuff_164k", __doc__)
