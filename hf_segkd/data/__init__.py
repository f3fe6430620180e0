"""Specs of datasets, and what turns their rows into tensors. Names are loaded on first use: most need torch."""

import importlib

_MODULES = {
    "BandJitter": "photometric",
    "DatasetSpec": "specs",
    "DecodedRows": "cache",
    "EvalTransform": "transforms",
    "PhotometricJitter": "photometric",
    "SegmentationDataset": "transforms",
    "TrainTransform": "transforms",
    "check_labels": "transforms",
    "collate": "transforms",
    "decoded": "cache",
}
__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
