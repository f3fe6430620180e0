from hf_segkd.data.cache import DecodedRows, decoded
from hf_segkd.data.photometric import PhotometricJitter
from hf_segkd.data.specs import DATASETS, DatasetSpec
from hf_segkd.data.transforms import EvalTransform, SegmentationDataset, TrainTransform, check_labels, collate

__all__ = [
    "DATASETS",
    "DatasetSpec",
    "DecodedRows",
    "EvalTransform",
    "PhotometricJitter",
    "SegmentationDataset",
    "TrainTransform",
    "check_labels",
    "collate",
    "decoded",
]
