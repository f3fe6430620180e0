"""Original checkpoints (`.pth`) to models of ours. A family is tables of names in a file, and a line here."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSemanticSegmentation, PreTrainedConfig, PreTrainedModel

from hf_segkd.conversion import cirkd, espnet, espnetv2, segformer, skd
from hf_segkd.conversion.family import Family, Part, StateDict
from hf_segkd.models import SegmentationImageProcessor, upsamples_with_align_corners

__all__ = ["FAMILIES", "Family", "Part", "convert", "converted_processor", "load_original", "recognize"]

FAMILIES: tuple[Family, ...] = (espnet.FAMILY, espnetv2.FAMILY, segformer.FAMILY, *cirkd.FAMILIES, skd.FAMILY)
WRAPPERS = ("state_dict", "model", "net")
CLASSIFIER = r"(^|\.)(_?fc|classifier|head)(\.\w+)*\.weight$"


def load_original(path: str | Path) -> StateDict:
    """Read the tensors of a checkpoint without running any code from it.

    Args:
        path (`str` or `Path`): A file written by `torch.save`, or a `.safetensors` file. An outer `state_dict`,
            `model` or `net` and the prefix `module.` of wrapped models are taken off.

    Returns:
        `dict[str, torch.Tensor]`: Original names, on the CPU.

    Raises:
        ValueError: No such file, a damaged one, one that needs code to open, or one that is no dict of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"No checkpoint at '{path}': it is not a file. Give the path of the original .pth file.")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    # On a damaged file the unpickler raises whatever the bytes lead it to: KeyError, struct.error, EOFError, ...
    except Exception as error:
        raise ValueError(_unreadable(path, error)) from error
    while isinstance(content, dict) and (outer := [key for key in WRAPPERS if isinstance(content.get(key), dict)]):
        content = content[outer[0]]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"'{path}' holds a {type(content).__name__}, expected a state dict: names with tensors.")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"'{path}' is no state dict of names with tensors: its entry {key!r} is a {type(value).__name__}. "
                f"Save the model's state dict alone, or under one of {', '.join(WRAPPERS)}."
            )
    state_dict = {key.removeprefix("module."): value for key, value in content.items()}
    if len(state_dict) != len(content):
        twice = [key for key in content if f"module.{key}" in content]
        raise ValueError(f"'{path}' has {_list(twice)} with the prefix 'module.' and without: keep one of the two.")
    return state_dict


def _unreadable(path: Path, error: Exception) -> str:
    if "GLOBAL " in str(error):
        name = str(error).split("GLOBAL ")[-1].split(" ")[0]
        return (
            f"'{path}' holds objects that need code to open ({name}), which is refused: opening them could run "
            "anything. Where you trust it, open it with its own code and save `model.state_dict()`."
        )
    return (
        f"'{path}' is damaged or no PyTorch checkpoint ({type(error).__name__} while reading {path.stat().st_size} "
        "bytes). Download it again and compare its size with the source's."
    )


def recognize(state_dict: StateDict) -> Family:
    """The family that a checkpoint belongs to.

    Raises:
        ValueError: None of `FAMILIES`; an image classifier is named as such.
    """
    for family in FAMILIES:
        if family.matches(state_dict):
            return family
    # Segmentation networks end in convolutions, image classifiers in a matrix of (classes, channels).
    matrices = [key for key in state_dict if re.search(CLASSIFIER, key) and state_dict[key].ndim == 2]
    if matrices:
        raise ValueError(
            f"This checkpoint is an image classifier ({matrices[-1]}, {len(state_dict[matrices[-1]])} classes): it "
            "tells what is in an image, not where. Give a segmentation model's; the backbone of a new student starts "
            "from this one with '{model_type: ..., backbone_weights: FILE}'."
        )
    raise ValueError(
        f"Unknown checkpoint: its first keys are {_list(state_dict, limit=4)}. "
        f"Known families: {', '.join(family.name for family in FAMILIES)}."
    )


def convert(state_dict: StateDict, id2label: dict[int, str] | None = None) -> PreTrainedModel:
    """Make the model of an original checkpoint, its config inferred from the shapes.

    Args:
        state_dict (`dict[str, torch.Tensor]`): Original names, as [`load_original`] gives them. Of any float type; an
            ImageNet classifier (`fc.`) is left out.
        id2label (`dict[int, str]`, *optional*): Names of the classes, as many as the checkpoint has. A checkpoint that
            is known to have these and others beside them (ESPNetv2's background of Cityscapes) keeps all of its own.

    Returns:
        `PreTrainedModel`: In evaluation mode, every weight from the checkpoint.

    Raises:
        ValueError: An unknown family, missing or unexpected keys, shapes that do not fit, values that are not finite,
            or another number of classes than names.
    """
    family = recognize(state_dict)
    broken = [key for key, value in state_dict.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"The checkpoint has NaN or infinite values in {_list(broken)}: its training had diverged.")
    state_dict = {key: value for key, value in state_dict.items() if not re.search(family.dropped, key)}
    # In half precision the operations would round: |weight| + 1e-5 would be |weight|.
    state_dict = {key: x.float() if x.is_floating_point() else x for key, x in state_dict.items()}
    model = AutoModelForSemanticSegmentation.from_config(_config(family, state_dict, id2label))
    unexpected = [key for key in state_dict if family.translate(key) is None]
    weights = {family.translate(key): value for key, value in state_dict.items() if key not in unexpected}
    for operation in family.operations:
        weights = operation(weights)
    expected = model.state_dict()
    # Written before torch 0.4.1, or by a norm layer that does not count its batches.
    counters = {key: torch.tensor(0) for key in expected if key.endswith(".num_batches_tracked")}
    weights = counters | weights
    _check_keys(family, expected, weights, unexpected)
    model.load_state_dict(weights, strict=True)
    return model.eval()


def converted_processor(family: Family, config: PreTrainedConfig) -> SegmentationImageProcessor:
    """The image processor of a converted model.

    Args:
        family (`Family`): What [`recognize`] says of the checkpoint.
        config (`PreTrainedConfig`): Of the model that [`convert`] made: how its logits are upsampled.
    """
    return SegmentationImageProcessor(**family.processor, align_corners=upsamples_with_align_corners(config))


def _config(family: Family, state_dict: StateDict, id2label: dict[int, str] | None) -> PreTrainedConfig:
    try:
        config = family.config(state_dict)
    except KeyError as error:
        raise ValueError(
            f"The checkpoint looks like {family.name} but lacks {error.args[0]}. Is the file complete?"
        ) from error
    if id2label is None or set(id2label.values()) < set(config.id2label.values()):
        return config
    if len(id2label) != config.num_labels:
        raise ValueError(
            f"The checkpoint has {config.num_labels} classes, the dataset {len(id2label)}. "
            "Name the dataset the checkpoint was trained on."
        )
    config.id2label = dict(id2label)
    config.label2id = {name: index for index, name in id2label.items()}
    return config


def _check_keys(family: Family, expected: StateDict, weights: StateDict, unexpected: list[str]) -> None:
    missing = [key for key in expected if key not in weights]
    unexpected = unexpected + [key for key in weights if key not in expected]
    if missing or unexpected:
        raise ValueError(
            f"The checkpoint looks like {family.name} but its keys do not fit. "
            f"Missing (our names): {_list(missing)}. Unexpected: {_list(unexpected)}."
        )
    shapes = [
        f"{key} {tuple(weights[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if weights[key].shape != value.shape
    ]
    if shapes:
        raise ValueError(f"The checkpoint looks like {family.name} but its shapes do not fit: {_list(shapes)}.")


def _list(items: Any, limit: int = 8) -> str:
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return (", ".join(items[:limit]) or "none") + more
