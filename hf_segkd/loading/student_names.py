"""Names of new students, as people type them. Imports nothing: `--help` lists them without torch."""

from __future__ import annotations

from typing import Any

# Short and long name of a backbone in a student's name, and its key in `hf_segkd.models.BACKBONES`.
_BACKBONES = {
    ("r18", "resnet18"): "resnet18",
    ("r34", "resnet34"): "resnet34",
    ("r50", "resnet50"): "resnet50",
    ("r101", "resnet101"): "resnet101",
    ("r152", "resnet152"): "resnet152",
    ("mbv2", "mobilenetv2"): "mobilenetv2",
    ("mbv3-s", "mobilenetv3-small"): "mobilenetv3_small",
    ("mbv3-l", "mobilenetv3-large"): "mobilenetv3_large",
    ("mobilevit-xxs",): "mobilevit_xxs",
    ("mobilevit-xs",): "mobilevit_xs",
    ("mobilevit-s",): "mobilevit_s",
    ("efficientnet-lite0",): "efficientnet_lite0",
    ("efficientnet-lite1",): "efficientnet_lite1",
    ("efficientnet-lite2",): "efficientnet_lite2",
}
_HEADS = ("deeplabv3", "pspnet", "upernet")
_WIDE = {"hidden_sizes": [64, 128, 320, 512]}
# Fields of SegFormer's sizes; B0 is the default of its config.
_SEGFORMER: dict[str, dict[str, Any]] = {
    "b0": {},
    "b1": {**_WIDE},
    "b2": {**_WIDE, "depths": [3, 4, 6, 3], "decoder_hidden_size": 768},
    "b3": {**_WIDE, "depths": [3, 4, 18, 3], "decoder_hidden_size": 768},
    "b4": {**_WIDE, "depths": [3, 8, 27, 3], "decoder_hidden_size": 768},
    "b5": {**_WIDE, "depths": [3, 6, 40, 3], "decoder_hidden_size": 768},
}

# Name -> what `load_model` takes for it.
STUDENTS: dict[str, dict[str, Any]] = {
    "espnet": {"model_type": "espnet"},
    "espnet-c": {"model_type": "espnet", "use_decoder": False},
    **{f"espnetv2-{width}": {"model_type": "espnetv2", "width": width} for width in (0.5, 1.0, 1.5, 2.0)},
    **{f"segformer-{size}": {"model_type": "segformer", **fields} for size, fields in _SEGFORMER.items()},
}
# Other spellings of the same, which no list shows.
_ALSO: dict[str, dict[str, Any]] = {"espnetv2": STUDENTS["espnetv2-1.0"], "segformer": STUDENTS["segformer-b0"]}
for _size in _SEGFORMER:
    _ALSO[f"mit-{_size}"] = STUDENTS[f"segformer-{_size}"]
for _head in _HEADS:
    _ALSO[_head] = {"model_type": _head, "backbone": "resnet18"}
    for _names, _backbone in _BACKBONES.items():
        STUDENTS[f"{_head}-{_names[0]}"] = {"model_type": _head, "backbone": _backbone}
        _ALSO[f"{_head}-{_names[-1]}"] = {"model_type": _head, "backbone": _backbone}
# A backbone alone stands under DeepLabV3's head, as the mobile students of the papers do.
for _names, _backbone in _BACKBONES.items():
    STUDENTS[_names[-1]] = {"model_type": "deeplabv3", "backbone": _backbone}


def student_fields(name: str) -> dict[str, Any] | None:
    """Fields of the new model that a name stands for; `None` for a name that is unknown.

    Case does not count, and `_` is the same as `-`.
    """
    name = name.lower().replace("_", "-")
    fields = STUDENTS.get(name, _ALSO.get(name))
    return None if fields is None else dict(fields)
