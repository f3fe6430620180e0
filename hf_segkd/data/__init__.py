from hf_segkd.data.datasets import DATASETS, DatasetSpec
from hf_segkd.data.transforms import EvalTransform, SegmentationDataset, TrainTransform, check_labels, collate

__all__ = [
    "DATASETS",
    "DatasetSpec",
    "EvalTransform",
    "SegmentationDataset",
    "TrainTransform",
    "check_labels",
    "collate",
]
