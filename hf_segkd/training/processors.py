"""The image processor that goes with a student: it must reproduce the protocol that the student is scored with."""

from __future__ import annotations

import copy

from transformers.image_processing_utils import BaseImageProcessor

from hf_segkd.models import SegmentationImageProcessor

# What would change the size of an image, or its labels. Students are trained on crops and scored on whole images.
CHANGES = ("do_resize", "do_center_crop", "do_pad", "do_thumbnail", "do_align_long_axis", "do_reduce_labels")


def whole_image_processor(processor: BaseImageProcessor) -> BaseImageProcessor:
    """A copy of a processor that leaves images at their own size and labels as they are.

    Rescaling, mean, std and the order of the channels stay. The processors of SegFormer on the Hub resize to 512x512:
    released beside a student that is scored at native size, they would give other scores than its card.
    """
    processor = copy.deepcopy(processor)
    if isinstance(processor, SegmentationImageProcessor):
        processor.size = None
    for name in CHANGES:
        if name in vars(processor):
            setattr(processor, name, False)
    return processor
