"""Names, colours and raw ids of the classes of each benchmark dataset, from their official tables."""

from hf_segkd.data.labels.ade20k import ADE20K
from hf_segkd.data.labels.camvid import CAMVID
from hf_segkd.data.labels.cityscapes import CITYSCAPES, CITYSCAPES_IDS
from hf_segkd.data.labels.coco_stuff import COCO_STUFF, COCO_STUFF_UNUSED
from hf_segkd.data.labels.colors import bit_color, distinct_colors
from hf_segkd.data.labels.voc import VOC

__all__ = [
    "ADE20K",
    "CAMVID",
    "CITYSCAPES",
    "CITYSCAPES_IDS",
    "COCO_STUFF",
    "COCO_STUFF_UNUSED",
    "VOC",
    "bit_color",
    "distinct_colors",
]
